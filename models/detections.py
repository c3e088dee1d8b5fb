"""What a detector says of a frame: boxes with scores, and the defects among them.

Shapes: C channels, H rows, W columns, M boxes, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.defects import Defect, OperatingPoint
from models.detection import label_offset
from models.errors import OutputError
from models.preprocessing import Pixels, Preprocessing, frame_to_tensor
from norm.tracing import tensors_in

if TYPE_CHECKING:
    from models.spec import ModelSpec


@dataclass(frozen=True)
class Detections:
    """The boxes of one frame, strongest first.

    Attributes:
        boxes: (M, 4) float32: left, top, right and bottom in pixels of the frame; 0 is the left
            side of the leftmost pixel.
        scores: (M,) float32, 0 to 1.
        classes: (M,) int64: index of the class.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


@torch.inference_mode()
def frame_detections(
    network: nn.Module,
    pixels: Pixels,
    spec: "ModelSpec",
    preprocessing: Preprocessing,
    device: torch.device,
) -> tuple[Detections, list[str]]:
    """Ask a detector in eval mode about one whole frame; training and serving share these lines.

    Args:
        network: From `build_detector`, on ``device``, in eval mode.
        pixels: (H, W) or (H, W, C), uint8 or uint16.
        spec: The network's.
        preprocessing: The network's.
        device: Where it runs.

    Returns:
        Its boxes at the frame's own size, and notes on what was converted.

    Raises:
        FrameError: If the frame does not suit the model.
        OutputError: A map or a score is no number.  It would lie above no threshold, and the frame
            would be called OK.
    """
    tensor, notes = frame_to_tensor(pixels, preprocessing)
    with _finite_outputs(network):
        (answer,) = network([tensor.to(device)])
    order = answer["scores"].argsort(descending=True, stable=True)
    seen: tuple[int, int] = (tensor.shape[1], tensor.shape[2])
    boxes = answer["boxes"][order].float().cpu().numpy()
    return Detections(
        boxes=scale_boxes(boxes, seen, (pixels.shape[0], pixels.shape[1])),
        scores=answer["scores"][order].float().cpu().numpy(),
        classes=(answer["labels"][order] - label_offset(spec)).cpu().numpy(),
    ), notes


def scale_boxes(
    boxes: NDArray[np.float32], size: tuple[int, int], other: tuple[int, int]
) -> NDArray[np.float32]:
    """Return boxes (M, 4) of a frame of one height and width as those of the frame at another."""
    if size == other:
        return boxes
    down, across = other[0] / size[0], other[1] / size[1]
    return boxes * np.array((across, down, across, down), np.float32)


@contextmanager
def _finite_outputs(network: nn.Module) -> Iterator[None]:
    """Look at what the pyramid and the heads hand on within the block.

    Raises:
        OutputError: Some of it is infinite or no number.
    """
    model: Any = network
    heads = (
        [model.rpn.head, model.roi_heads.box_predictor] if hasattr(model, "rpn") else [model.head]
    )
    finite: list[bool] = []

    def look(_module: nn.Module, _inputs: object, output: object) -> None:
        finite.extend(bool(tensor.isfinite().all()) for tensor in tensors_in(output))

    hooks = [part.register_forward_hook(look) for part in (model.backbone, *heads)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not all(finite):
        raise OutputError(
            "detections_not_finite",
            "what the model computes of the frame are no numbers, so there is no verdict",
            hint="roll the deployment back; the frame or the model's weights are out of range",
        )


def find_boxed_defects(
    detections: Detections,
    size: tuple[int, int],
    classes: Sequence[str],
    point: OperatingPoint,
    *,
    max_detections: int,
) -> tuple[tuple[Defect, ...], list[str]]:
    """Return the boxes at or above the operating point as defects, strongest first, and notes.

    Args:
        detections: Of one frame.
        size: Height and width of the frame.
        classes: K names.
        point: Threshold and minimum area of each class.
        max_detections: Where the detector stops; a frame that reaches it may hold more defects.
    """
    defects = []
    for box, score, index in zip(
        detections.boxes, detections.scores, detections.classes, strict=True
    ):
        chosen = point.classes[classes[index]]
        x, y, width, height = whole_pixels(box, size)
        if score >= chosen.threshold and width * height >= chosen.min_area_px:
            defects.append(
                Defect(
                    class_name=classes[index],
                    score=float(score),
                    box=(x, y, width, height),
                    area_px=width * height,
                    polygon=(),
                )
            )
    notes = []
    if len(detections) >= max_detections and len(defects) == len(detections):
        notes.append(f"the model lists at most {max_detections} boxes a frame; there may be more")
    return tuple(defects), notes


def whole_pixels(box: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the pixels of the frame that a box touches, one at least."""
    height, width = size
    left = min(max(math.floor(box[0]), 0), width - 1)
    top = min(max(math.floor(box[1]), 0), height - 1)
    right = min(max(math.ceil(box[2]), left + 1), width)
    bottom = min(max(math.ceil(box[3]), top + 1), height)
    return left, top, right - left, bottom - top


@dataclass(frozen=True)
class Candidates:
    """Every answer of a detector before the weak and the doubled are dropped.

    What is kept depends on ties and on limits, so that two networks that differ by rounding may
    list different boxes; these may differ by rounding alone.

    Attributes:
        scores: (A, ...) float32, 0 to 1, of every anchor or place and class; for Faster R-CNN those
            of the first stage, then those of the second on given regions.
        boxes: (A, ...) float32 left, top, right, bottom, in units of the anchor's or region's
            longer side.
        regions: Faster R-CNN's proposals (R, 4); else None.
    """

    scores: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    regions: Tensor | None = None

    def largest_difference(self, other: "Candidates") -> float:
        """Return the largest difference of any score or box; NaN if one is no number.

        A box that is larger than its anchor counts in units of its own longer side: a network says
        the logarithm of a size, so rounding grows with it, and so does what an edge may be off by.
        """
        scores = zip(self.scores, other.scores, strict=True)
        differences = [(ours - theirs).abs() for ours, theirs in scores]
        for ours, theirs in zip(self.boxes, other.boxes, strict=True):
            sides = (ours[..., 2:] - ours[..., :2]).amax(-1, keepdim=True).clamp_min(1.0)
            differences.append((ours - theirs).abs() / sides)
        # Where Faster R-CNN proposes nothing, its second stage has no answer.
        return float(torch.stack([each.max() for each in differences if each.numel()]).max())


@torch.inference_mode()
def frame_candidates(
    network: nn.Module,
    pixels: Pixels,
    preprocessing: Preprocessing,
    device: torch.device,
    regions: Tensor | None = None,
) -> Candidates:
    """Return a detector's candidates on one frame.

    Args:
        network: From `build_detector`, on ``device``, in eval mode.
        pixels: (H, W) or (H, W, C), uint8 or uint16.
        preprocessing: The network's.
        device: Where it runs.
        regions: What Faster R-CNN's second stage is asked about; None takes its own proposals.
    """
    tensor, _ = frame_to_tensor(pixels, preprocessing)
    return tensor_candidates(network, tensor.to(device), regions)


def tensor_candidates(
    network: nn.Module, tensor: Tensor, regions: Tensor | None = None
) -> Candidates:
    """Return a detector's candidates on one standardized frame (C, H, W), see `frame_candidates`.

    Whoever calls it needs no gradient.
    """
    model: Any = network
    images, _ = model.transform([tensor])
    maps = model.backbone(images.tensors)
    if hasattr(model, "rpn"):
        return _two_stage_candidates(model, images, maps, regions)
    features = list(maps.values())
    outputs = model.head(features)
    (anchors,) = model.anchor_generator(images, features)
    scores = outputs["cls_logits"][0].sigmoid()
    if "bbox_ctrness" in outputs:
        scores = (scores * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
    decoder = model.box_coder
    decode = decoder.decode_single if hasattr(decoder, "decode_single") else decoder.decode
    boxes = decode(outputs["bbox_regression"][0], anchors)
    return Candidates((scores,), (_in_sides(boxes, anchors),))


def _two_stage_candidates(model: Any, images: Any, maps: Any, regions: Tensor | None) -> Candidates:
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    features = list(maps.values())
    objectness, deltas = concat_box_prediction_layers(*model.rpn.head(features))
    (anchors,) = model.rpn.anchor_generator(images, features)
    first = model.rpn.box_coder.decode_single(deltas, anchors)
    if regions is None:
        regions = model.rpn(images, maps)[0][0]
    heads = model.roi_heads
    pooled = heads.box_roi_pool(maps, [regions], images.image_sizes)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    # A network that proposes nothing has no region, of which a size can't be inferred.
    shape = (len(regions), deltas.shape[1] // 4, 4)
    second = heads.box_coder.decode_single(deltas, regions).reshape(shape)
    return Candidates(
        (objectness.sigmoid(), logits.softmax(-1)),
        (_in_sides(first, anchors), _in_sides(second, regions)),
        regions,
    )


def _in_sides(boxes: Tensor, references: Tensor) -> Tensor:
    sides = (references[:, 2:] - references[:, :2]).max(dim=1).values.clamp_min(1.0)
    return boxes / sides.reshape(-1, *[1] * (boxes.dim() - 1))
