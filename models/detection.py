"""Detectors from torchvision on any of our encoders, at the frame's native size.

Shapes: N frames, C channels, H rows, W columns, M boxes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Architecture
from models.detection_spec import DetectionSpec, level_strides_px
from models.encoders import ENCODERS
from models.errors import SpecError
from models.preprocessing import pad_to_multiple

if TYPE_CHECKING:
    from models.spec import ModelSpec

# torchvision's 32 groups of 256 channels.  A coarse map of a small frame has one place, and a group
# of one channel would have one value to normalize there.
_CHANNELS_A_GROUP = 8
# Three sizes an octave, as in Lin et al., Focal Loss for Dense Object Detection, sec. 4.
_RETINANET_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_COARSEST_STAGE_PX = 32


class FeaturePyramid(nn.Module):
    """An encoder with a feature pyramid on top (Lin et al., arXiv 1612.03144).

    Args:
        encoder: Of segmentation-models-pytorch: (N, C, H, W) to its stages, stride 1 first.
        channels: Of every map.
        finest_stride_px: Of the finest map.
        one_stage: Two coarser maps by convolution as in RetinaNet, instead of one by pooling.

    Attributes:
        out_channels: Of every map; torchvision asks for it.
        precision: Maps are computed by autocast in this dtype and always returned in float32.
    """

    def __init__(
        self, encoder: nn.Module, channels: int, finest_stride_px: int, *, one_stage: bool
    ) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

        self.encoder = encoder
        widths: Any = encoder.out_channels
        self._first_stage = finest_stride_px.bit_length() - 1
        self.out_channels = channels
        self.precision = torch.float32
        extra = LastLevelP6P7(channels, channels) if one_stage else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(list(widths[self._first_stage :]), channels, extra)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the maps (N, channels, h, w) float32, finest first."""
        with torch.autocast(
            x.device.type,
            dtype=torch.bfloat16,
            enabled=self.precision == torch.bfloat16,
        ):
            stages = self.encoder(x)[self._first_stage :]
            maps = self.fpn(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))
        return OrderedDict((name, features.float()) for name, features in maps.items())


class Float32Boxes:
    """Keeps autocast to the feature pyramid of the torchvision detector that it is mixed into.

    Heads, anchors, boxes and losses are float32: in bfloat16 a box on a large frame would be
    rounded to multiples of 16 px.
    """

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> Any:
        """Run the detector; autocast, where the caller has it on, ends at the pyramid's maps."""
        detector: Any = super()
        kind = images[0].device.type
        pyramid = self.backbone  # type: ignore[attr-defined]  # The detector's.
        on = torch.is_autocast_enabled(kind)
        pyramid.precision = torch.get_autocast_dtype(kind) if on else torch.float32
        try:
            with torch.autocast(kind, enabled=False):
                return detector.forward(images, targets)
        finally:
            pyramid.precision = torch.float32


class NativeFrames(nn.Module):
    """Takes the place of torchvision's transform, which resizes frames and boxes to 800 px.

    Frames come standardized and keep every pixel; they are padded at the bottom and right by
    repeating their edge.  Boxes are clipped to each frame's own size.
    """

    def __init__(self, stride_px: int) -> None:
        super().__init__()
        self._stride_px = stride_px

    def forward(
        self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[Any, list[dict[str, Tensor]] | None]:
        """Stack frames (C, H, W) of any sizes; targets are passed on as they are."""
        from torchvision.models.detection.image_list import ImageList

        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        height = max(size[0] for size in sizes)
        width = max(size[1] for size in sizes)
        padded = [
            F.pad(image[None], (0, width - size[1], 0, height - size[0]), mode="replicate")
            for image, size in zip(images, sizes, strict=True)
        ]
        batch = pad_to_multiple(torch.cat(padded), self._stride_px)
        return ImageList(batch.contiguous(memory_format=torch.channels_last), sizes), targets

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        """Return the boxes as they are: they are in pixels of the frame already."""
        return result


def build_detector(
    spec: "ModelSpec",
    *,
    class_count: int,
    in_channels: int,
    foreground_rate: Sequence[float] = (),  # noqa: ARG001 - its heads start at a prior of their own.
) -> nn.Module:
    """Build a torchvision detector for frames of any size; nothing is downloaded.

    It is torchvision's own class: a list of frames (C, H, W), in training with targets ``boxes``
    (M, 4) float32 and ``labels`` (M,) int64, to a dictionary of losses or a list of ``boxes``,
    ``scores`` and ``labels``.  Labels count from `label_offset`.

    Args:
        spec: The network, with everything in ``detection`` settled.
        class_count: Number of defect classes, background not counted.
        in_channels: 1 for mono frames, 3 for colour.
        foreground_rate: Not used: the heads start at torchvision's prior.

    Raises:
        SpecError: The encoder can't be built, or the anchors don't fit the maps.
    """
    import segmentation_models_pytorch as smp

    detection, strides_px = _settled(spec)
    encoder = smp.encoders.get_encoder(
        ENCODERS[spec.encoder].library_name,
        in_channels=in_channels,
        depth=spec.encoder_depth,
        weights=None,
    )
    pyramid = FeaturePyramid(
        encoder,
        detection.pyramid_channels,
        strides_px[0],
        one_stage=spec.architecture != "fasterrcnn",
    )
    builders = {"fasterrcnn": _faster_rcnn, "retinanet": _retinanet, "fcos": _fcos}
    model = builders[spec.architecture](pyramid, detection, strides_px, class_count)
    model.transform = NativeFrames(spec.stride_px)
    return model


def _settled(spec: "ModelSpec") -> tuple[DetectionSpec, tuple[int, ...]]:
    """Return what is special of a detector, and the strides of its maps."""
    architecture, detection = spec.architecture, spec.detection
    if detection is None or detection.finest_stride_px is None:
        raise SpecError(
            "detection_not_settled",
            "the detector's finest stride and anchors were not derived yet",
            hint="use DetectionSpec.settle with the training boxes first",
        )
    return detection, level_strides_px(architecture, detection.finest_stride_px)


def label_offset(spec: "ModelSpec") -> int:
    """Return the label of the first class: Faster R-CNN keeps 0 for background."""
    return 1 if spec.architecture == "fasterrcnn" else 0


def _faster_rcnn(
    pyramid: FeaturePyramid, detection: DetectionSpec, strides_px: tuple[int, ...], class_count: int
) -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FasterRCNN, TwoMLPHead
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor as Predictor

    channels, hidden = pyramid.out_channels, 4 * pyramid.out_channels
    pool = _region_pool(strides_px)
    kind: Any = type("NativeFasterRCNN", (Float32Boxes, FasterRCNN), {})
    model: nn.Module = kind(
        pyramid,
        rpn_anchor_generator=_anchors(detection, strides_px, scales=(1.0,)),
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * pool.output_size[0] ** 2, hidden),
        box_predictor=Predictor(hidden, class_count + 1),
        box_score_thresh=detection.min_score,
        box_nms_thresh=detection.nms_iou,
        box_detections_per_img=detection.max_detections,
    )
    return model


def _region_pool(strides_px: tuple[int, ...]) -> Any:
    """Return RoI align over the encoder's stages, with the scales that they have.

    torchvision guesses them from the first frame's size, and is wrong by an octave where a small
    frame was padded.
    """
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.poolers import initLevelMapper

    strides = [px for px in strides_px if px <= _COARSEST_STAGE_PX]
    names = [str(level) for level in range(len(strides))]
    pool = MultiScaleRoIAlign(featmap_names=names, output_size=7, sampling_ratio=2)
    pool.scales = [1 / px for px in strides]
    levels = [px.bit_length() - 1 for px in strides]
    pool.map_levels = initLevelMapper(levels[0], levels[-1])
    return pool


def _retinanet(
    pyramid: FeaturePyramid, detection: DetectionSpec, strides_px: tuple[int, ...], class_count: int
) -> nn.Module:
    from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

    anchors = _anchors(detection, strides_px, scales=_RETINANET_SCALES)
    head = RetinaNetHead(
        pyramid.out_channels,
        anchors.num_anchors_per_location()[0],
        class_count,
        norm_layer=_group_norm,
    )
    kind: Any = type("NativeRetinaNet", (Float32Boxes, RetinaNet), {})
    model: nn.Module = kind(
        pyramid,
        class_count,
        anchor_generator=anchors,
        head=head,
        score_thresh=detection.min_score,
        nms_thresh=detection.nms_iou,
        detections_per_img=detection.max_detections,
    )
    return model


def _fcos(
    pyramid: FeaturePyramid, detection: DetectionSpec, strides_px: tuple[int, ...], class_count: int
) -> nn.Module:
    from torchvision.models.detection.fcos import (
        FCOS,
        FCOSClassificationHead,
        FCOSHead,
        FCOSRegressionHead,
    )

    channels = pyramid.out_channels
    head = FCOSHead(channels, num_anchors=1, num_classes=class_count)
    head.classification_head = FCOSClassificationHead(
        channels, num_anchors=1, num_classes=class_count, norm_layer=_group_norm
    )
    head.regression_head = FCOSRegressionHead(channels, num_anchors=1, norm_layer=_group_norm)
    # What FCOS calls anchors are its maps' strides; they are no choice.
    kind: Any = type("NativeFCOS", (Float32Boxes, FCOS), {})
    model: nn.Module = kind(
        pyramid,
        class_count,
        anchor_generator=_grid(tuple((float(px),) for px in strides_px), (1.0,), strides_px),
        head=head,
        score_thresh=detection.min_score,
        nms_thresh=detection.nms_iou,
        detections_per_img=detection.max_detections,
    )
    return model


def _group_norm(channels: int) -> nn.GroupNorm:
    """Return the heads' normalization, as in torchvision's second versions of them."""
    return nn.GroupNorm(channels // _CHANNELS_A_GROUP, channels)


def _anchors(
    detection: DetectionSpec, strides_px: tuple[int, ...], *, scales: tuple[float, ...]
) -> Any:
    sizes, ratios = detection.anchor_sizes_px, detection.anchor_ratios
    if sizes is None or ratios is None or len(sizes) != len(strides_px):
        raise SpecError(
            "anchors_misfit",
            f"the detector has {len(strides_px)} maps, anchor_sizes_px is {sizes}, anchor_ratios "
            f"{ratios}",
            hint="give one size a map, finest first, or leave both out",
        )
    return _grid(
        tuple(tuple(size * scale for scale in scales) for size in sizes), ratios, strides_px
    )


def _grid(
    sizes_px: tuple[tuple[float, ...], ...],
    ratios: tuple[float, ...],
    strides_px: tuple[int, ...],
) -> Any:
    """Return torchvision's anchors, at the strides that the maps have.

    torchvision divides the frame's side by the map's, which shifts the anchors of the coarsest maps
    by up to a stride unless the frame's side is a multiple of the coarsest stride.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    class NativeAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision is not typed.
        def grid_anchors(self, grid_sizes: Any, strides: Any) -> Any:
            true = [
                [torch.full_like(px, stride_px) for px in pair]
                for pair, stride_px in zip(strides, strides_px, strict=True)
            ]
            return super().grid_anchors(grid_sizes, true)

    return NativeAnchors(sizes_px, (ratios,) * len(sizes_px))


def _check(spec: "ModelSpec") -> None:
    detection = spec.detection
    if spec.architecture != "fcos" or detection is None:
        return
    if detection.anchor_sizes_px is not None or detection.anchor_ratios is not None:
        raise SpecError(
            "option_not_taken",
            "fcos has no anchors to choose",
            hint="leave detection.anchor_sizes_px and detection.anchor_ratios out",
        )


def _finest_stride_px(spec: "ModelSpec") -> int:
    settled = spec.detection.finest_stride_px if spec.detection else None
    return settled or 4


def _detector(name: str, summary: str, head_prefix: str) -> Architecture:
    return Architecture(
        name=name,
        task="detection",
        summary=summary,
        encoders=tuple(ENCODERS),
        options=frozenset({"detection"}),
        stride_px=lambda spec: int(2**spec.encoder_depth),
        finest_stride_px=_finest_stride_px,
        build=build_detector,
        check_more=_check,
        encoder_prefix="backbone.encoder.",
        head_prefix=head_prefix,
    )


DETECTION = (
    _detector(
        "fasterrcnn",
        "boxes in two stages, at stride 4; the choice for small defects",
        "roi_heads.box_predictor.",
    ),
    _detector(
        "retinanet",
        "boxes in one stage with anchors; for defects of many sizes",
        "head.classification_head.cls_logits.",
    ),
    _detector(
        "fcos",
        "boxes in one stage without anchors; for defects larger than its stride",
        "head.classification_head.cls_logits.",
    ),
)
