"""Segmentation networks from segmentation-models-pytorch, one builder for all."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from models.errors import SpecError
from models.spec import Encoder, ModelSpec

# Our names are stable; the library's are not (it has renamed its timm encoders once already).
_LIBRARY_NAMES: dict[Encoder, str] = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3_small": "tu-mobilenetv3_small_100",
    "mobilenet_v3_large": "tu-mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet-b0",
}


def build_segmentation_model(
    spec: ModelSpec, *, class_count: int, in_channels: int, foreground_rate: Sequence[float] = ()
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
    import segmentation_models_pytorch as smp

    common = {
        "encoder_name": _LIBRARY_NAMES[spec.encoder],
        "encoder_weights": None,
        "encoder_depth": spec.encoder_depth,
        "in_channels": in_channels,
        "classes": class_count,
    }
    try:
        if spec.architecture == "unet":
            model: nn.Module = smp.Unet(decoder_channels=spec.unet_channels, **common)
        else:
            model = smp.FPN(**common)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise SpecError(
            "model_spec_refused",
            f"{spec.architecture} with {spec.encoder}, depth {spec.encoder_depth}: {error}",
            hint="choose another encoder or encoder_depth 5",
        ) from error
    _drop_unused(model, in_channels, 2 * spec.stride_px)
    _start_at_prior(model, foreground_rate)
    return model


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
