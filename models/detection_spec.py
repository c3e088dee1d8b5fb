"""What a detector is besides its encoder, as data: pyramid, anchors and limits on its answers."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import SpecError

# Anchors of the published detectors: heights over widths, and boxes from 32 px on.
_USUAL_RATIOS = (0.5, 1.0, 2.0)
_USUAL_SMALLEST_PX = 32
# A map of stride 8 has a place every 8 px: a box of less than twice that meets one or none.
_SMALL_FOR_STRIDE_8_PX = 16.0
_SMALLEST_ANCHOR_PX = 4
_LARGEST_RATIO = 10.0
# Between neighbouring ratios a box's overlap with the nearer one stays above a half.
_RATIO_STEP = 3.0


class DetectionSpec(BaseModel):
    """A detector's pyramid, anchors and limits.

    What is None is derived from the training boxes by `settle` before the network is built, and the
    bundle holds what it came to.

    Attributes:
        pyramid_channels: Width of every pyramid map and of the heads; a multiple of 32, which is
            how many groups the heads are normalized in.
        finest_stride_px: Stride of the finest map.  4 sees smaller defects, and a head of
            ``retinanet`` or ``fcos`` costs four times as much on it.
        anchor_sizes_px: Side of the anchors on each map, finest first; not for ``fcos``.
        anchor_ratios: Height over width of the anchors; not for ``fcos``.
        nms_iou: Of two boxes of a class that overlap by more than this only the stronger is kept.
        max_detections: Most boxes of one frame.
        min_score: Weaker boxes are never looked at, neither for a threshold nor in serving.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pyramid_channels: Annotated[int, Field(ge=32, le=512, multiple_of=32)] = 256
    finest_stride_px: Literal[4, 8] | None = None
    anchor_sizes_px: tuple[Annotated[int, Field(ge=1, le=32_768)], ...] | None = None
    anchor_ratios: tuple[Annotated[float, Field(ge=0.02, le=50)], ...] | None = None
    nms_iou: Annotated[float, Field(gt=0, lt=1)] = 0.5
    max_detections: Annotated[int, Field(ge=1, le=1000)] = 100
    min_score: Annotated[float, Field(ge=0, lt=1)] = 0.01

    @model_validator(mode="after")
    def _check_anchors(self) -> Self:
        sizes = self.anchor_sizes_px
        if sizes is not None and list(sizes) != sorted(sizes):
            raise ValueError("anchor_sizes_px must grow from the finest map to the coarsest")
        if self.anchor_ratios is not None and not self.anchor_ratios:
            raise ValueError("anchor_ratios is empty; leave it out to have it derived")
        return self

    def settle(self, architecture: str, box_sides_px: Sequence[tuple[float, float]]) -> Self:
        """Return the spec with everything derived that was left out.

        Args:
            architecture: ``fasterrcnn``, ``retinanet`` or ``fcos``.
            box_sides_px: (width, height) of training boxes; without any the published anchors are
                taken.

        Raises:
            SpecError: ``anchor_sizes_px`` does not have one size a map.
        """
        stride_px = self.finest_stride_px or _finest_stride_px(architecture, box_sides_px)
        update: dict[str, object] = {"finest_stride_px": stride_px}
        if architecture != "fcos":
            count = len(level_strides_px(architecture, stride_px))
            sizes = self.anchor_sizes_px or anchor_sizes_px(box_sides_px, count)
            if len(sizes) != count:
                raise SpecError(
                    "anchors_misfit",
                    f"anchor_sizes_px has {len(sizes)} sizes, a {architecture} with "
                    f"finest_stride_px {stride_px} has {count} maps",
                    hint="give one size a map, finest first, or leave it out",
                )
            update["anchor_sizes_px"] = sizes
            update["anchor_ratios"] = self.anchor_ratios or anchor_ratios(box_sides_px)
        return self.model_copy(update=update)


def level_strides_px(architecture: str, finest_stride_px: int) -> tuple[int, ...]:
    """Return the strides of a detector's maps, finest first.

    The encoder's stages end at stride 32; Faster R-CNN adds one coarser map, the others two.
    """
    coarsest_px = 64 if architecture == "fasterrcnn" else 128
    count = int(math.log2(coarsest_px // finest_stride_px)) + 1
    return tuple(finest_stride_px * 2**level for level in range(count))


def anchor_sizes_px(box_sides_px: Sequence[tuple[float, float]], count: int) -> tuple[int, ...]:
    """Return one anchor side a map that together cover the boxes' sizes, finest first.

    The sizes are square roots of areas.  They run geometrically from the 5 % to the 95 % quantile,
    and at least double from map to map as the strides do.
    """
    if not box_sides_px:
        return tuple(_USUAL_SMALLEST_PX * 2**level for level in range(count))
    sizes = np.sqrt(np.prod(np.asarray(box_sides_px, np.float64), axis=1))
    low, high = (float(value) for value in np.quantile(sizes, (0.05, 0.95)))
    low = max(low, float(_SMALLEST_ANCHOR_PX))
    step = max(2.0, (high / low) ** (1 / (count - 1)))
    return tuple(round(low * step**level) for level in range(count))


def anchor_ratios(box_sides_px: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Return heights over widths that cover the boxes' 10 % to 90 % quantiles, ascending.

    They hold the published 1/2, 1 and 2 or reach further, up to 10 either way, with one between
    where they reach beyond 3.
    """
    if not box_sides_px:
        return _USUAL_RATIOS
    sides = np.asarray(box_sides_px, np.float64)
    low, high = (float(v) for v in np.quantile(sides[:, 1] / sides[:, 0], (0.1, 0.9)))
    flat = min(max(1 / low, _USUAL_RATIOS[-1]), _LARGEST_RATIO)
    tall = min(max(high, _USUAL_RATIOS[-1]), _LARGEST_RATIO)
    ratios = [1.0, 1 / flat, tall]
    ratios += [1 / math.sqrt(flat)] if flat > _RATIO_STEP else []
    ratios += [math.sqrt(tall)] if tall > _RATIO_STEP else []
    return tuple(round(ratio, 4) for ratio in sorted(ratios))


def _finest_stride_px(
    architecture: str, box_sides_px: Sequence[tuple[float, float]]
) -> Literal[4, 8]:
    if architecture == "fasterrcnn":
        return 4
    shorter = [min(sides) for sides in box_sides_px]
    # One box in ten that no place of the finest map falls into would be too many.
    small = bool(shorter) and float(np.quantile(shorter, 0.1)) < _SMALL_FOR_STRIDE_8_PX
    return 4 if small else 8
