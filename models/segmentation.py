"""Segmentation networks from segmentation-models-pytorch: what each takes, and one builder."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.architecture import Architecture
from models.encoders import ENCODERS
from models.errors import SpecError

if TYPE_CHECKING:
    from models.spec import ModelSpec

# One value a frame is no batch to normalize over; so many groups of channels are.
POOLING_GROUPS = 32
DEFAULT_OUTPUT_STRIDE = 16


def build_segmentation_model(
    spec: "ModelSpec",
    *,
    class_count: int,
    in_channels: int,
    foreground_rate: Sequence[float] = (),
) -> nn.Module:
    """Build a network that maps (N, in_channels, H, W) to logits (N, class_count, H, W).

    Every class has its own sigmoid: defects may overlap.  Weights are random; nothing is
    downloaded.

    Args:
        spec: The network.
        class_count: Number of defect classes, background not counted.
        in_channels: 1 for mono frames, 3 for colour.
        foreground_rate: Share of labelled pixels of each class.  The last bias starts there, so
            that the first steps are not spent on learning that almost everything is background
            (Lin et al., *Focal Loss for Dense Object Detection*, arXiv 1708.02002, sec. 3.3).

    Raises:
        SpecError: If the library refuses the combination.
    """
    common = {
        "encoder_name": ENCODERS[spec.encoder].library_name,
        "encoder_weights": None,
        "encoder_depth": spec.encoder_depth,
        "in_channels": in_channels,
        "classes": class_count,
    }
    try:
        model = _CONSTRUCTORS[spec.architecture](spec, common)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SpecError(
            "model_spec_refused",
            f"{spec.architecture} with {spec.encoder}, depth {spec.encoder_depth}: {error}",
            hint="choose another encoder or encoder_depth 5",
        ) from error
    _drop_unused(model, in_channels, 2 * spec.stride_px)
    _start_at_prior(model, foreground_rate)
    return model


def _unet(spec: "ModelSpec", common: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch as smp

    model: nn.Module = smp.Unet(decoder_channels=spec.unet_channels, **common)
    return model


def _fpn(spec: "ModelSpec", common: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch as smp

    # The pyramid's finest map is three stages above the deepest, at stride 2 for a depth of 4.
    model: nn.Module = smp.FPN(upsampling=2 ** (spec.encoder_depth - 3), **common)
    return model


def _deeplabv3plus(spec: "ModelSpec", common: dict[str, Any]) -> nn.Module:
    """Build DeepLabV3+ (Chen et al., arXiv 1802.02611), with one deviation.

    The image pooling of its ASPP leaves one value a channel and frame.  Batch normalization has no
    variance to divide by there at batch 1 (torch refuses to train it), so that this one layer
    normalizes by groups of channels.
    """
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPPPooling

    stride = spec.output_stride or DEFAULT_OUTPUT_STRIDE
    model: nn.Module = smp.DeepLabV3Plus(encoder_output_stride=stride, **common)
    for pooling in model.modules():
        if isinstance(pooling, ASPPPooling):
            for name, child in list(pooling.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    groups = nn.GroupNorm(POOLING_GROUPS, child.num_features, eps=child.eps)
                    pooling.add_module(name, groups)
    return model


def _linknet(_: "ModelSpec", common: dict[str, Any]) -> nn.Module:
    """Build LinkNet (Chaurasia and Culurciello, arXiv 1707.03718), with one deviation.

    Its decoder enlarges by nearest neighbour and a 3x3 convolution, not by a transposed
    convolution: the normalization behind that one could neither pool a window of iterations nor be
    folded, and it leaves a checkerboard in what should be a smooth map.
    """
    import segmentation_models_pytorch as smp

    model: nn.Module = smp.Linknet(**common)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ConvTranspose2d):
                convolution = nn.Conv2d(child.in_channels, child.out_channels, 3, padding=1)
                nn.init.kaiming_uniform_(convolution.weight, mode="fan_in", nonlinearity="relu")
                parent.add_module(name, nn.Sequential(nn.Upsample(scale_factor=2), convolution))
    return model


_CONSTRUCTORS: dict[str, Callable[["ModelSpec", dict[str, Any]], nn.Module]] = {
    "unet": _unet,
    "fpn": _fpn,
    "deeplabv3plus": _deeplabv3plus,
    "linknet": _linknet,
}


def _check_unet(spec: "ModelSpec") -> None:
    widths = spec.decoder_channels
    if widths is not None and len(widths) != spec.encoder_depth:
        raise SpecError(
            "decoder_channels_mismatch",
            f"decoder_channels has {len(widths)} widths, encoder_depth asks for "
            f"{spec.encoder_depth}",
            hint="give one width a stage, or leave decoder_channels out",
        )


def _check_fpn(spec: "ModelSpec") -> None:
    first = ENCODERS[spec.encoder].first_stride
    least = 5 if first == 4 else 4
    if spec.encoder_depth < least:
        raise SpecError(
            "encoder_depth_too_small",
            f"an fpn needs four maps of {spec.encoder}, whose finest has stride {first}; "
            f"encoder_depth {spec.encoder_depth} leaves fewer",
            hint=f"use encoder_depth {least}{'' if least == 5 else ' or 5'}, or a unet",
        )


def _deepest_stride(spec: "ModelSpec") -> int:
    return int(2**spec.encoder_depth)


def _dilated_stride(spec: "ModelSpec") -> int:
    return spec.output_stride or DEFAULT_OUTPUT_STRIDE


def _first_stride(spec: "ModelSpec") -> int:
    return ENCODERS[spec.encoder].first_stride


_ALL = tuple(ENCODERS)

SEGMENTATION = (
    Architecture(
        name="unet",
        task="segmentation",
        summary="keeps the finest detail; the choice for defects of a few pixels",
        encoders=_ALL,
        options=frozenset({"encoder_depth", "decoder_channels"}),
        stride_px=_deepest_stride,
        finest_stride_px=_first_stride,
        build=build_segmentation_model,
        check_more=_check_unet,
    ),
    Architecture(
        name="fpn",
        task="segmentation",
        summary="sums four scales at stride 4 (2 with encoder_depth 4); for defects of many sizes",
        encoders=_ALL,
        options=frozenset({"encoder_depth"}),
        stride_px=_deepest_stride,
        finest_stride_px=lambda spec: int(2 ** (spec.encoder_depth - 3)),
        build=build_segmentation_model,
        check_more=_check_fpn,
    ),
    Architecture(
        name="deeplabv3plus",
        task="segmentation",
        summary="sees the widest surroundings, at stride 4; for stains and textures",
        encoders=_ALL,
        options=frozenset({"output_stride"}),
        stride_px=_dilated_stride,
        finest_stride_px=lambda _: 4,
        build=build_segmentation_model,
    ),
    Architecture(
        name="linknet",
        task="segmentation",
        summary="the real-time design: little arithmetic, and skips from stride 2 all the same",
        encoders=_ALL,
        options=frozenset({"encoder_depth"}),
        stride_px=_deepest_stride,
        finest_stride_px=_first_stride,
        build=build_segmentation_model,
    ),
)


def _drop_unused(model: nn.Module, in_channels: int, side_px: int) -> None:
    """Remove layers that a forward pass never reaches.

    The library keeps an encoder's deepest stages whatever its depth; those of a ResNet-18 are three
    quarters of its weights, and their batch norms would be reported as not converted.
    """
    reached: set[nn.Module] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, _: reached.add(module))
        for module in model.modules()
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_channels, side_px, side_px))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not any(module in reached for module in child.modules()):
                delattr(parent, name)


def _start_at_prior(model: nn.Module, foreground_rate: Sequence[float]) -> None:
    head = model.segmentation_head
    assert isinstance(head, nn.Sequential)
    last = head[0]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    for index, rate in enumerate(foreground_rate):
        bounded = min(max(rate, 1e-4), 0.5)
        with torch.no_grad():
            last.bias[index] = math.log(bounded / (1 - bounded))
