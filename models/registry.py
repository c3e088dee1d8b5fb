"""Every architecture that a job may ask for; ``docs/models.md`` says how to add one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.architecture import Architecture
from models.errors import SpecError
from models.segmentation import SEGMENTATION

if TYPE_CHECKING:
    from models.spec import ModelSpec

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in SEGMENTATION
}


def architecture_named(name: str) -> Architecture:
    """Return an architecture by its name.

    Raises:
        SpecError: There is none of that name.
    """
    if name not in ARCHITECTURES:
        raise SpecError(
            "architecture_unknown",
            f"there is no architecture {name!r}",
            hint=f"use one of {', '.join(ARCHITECTURES)}",
        )
    return ARCHITECTURES[name]


def build_model(
    spec: "ModelSpec",
    *,
    class_count: int,
    in_channels: int,
    foreground_rate: Sequence[float] = (),
) -> nn.Module:
    """Build the network of a specification, with random weights; nothing is downloaded.

    Args:
        spec: The network.
        class_count: Number of defect classes, background not counted.
        in_channels: 1 for mono frames, 3 for colour.
        foreground_rate: Share of labelled pixels of each class, for the last bias.

    Raises:
        SpecError: If the library refuses the combination.
    """
    return architecture_named(spec.architecture).build(
        spec,
        class_count=class_count,
        in_channels=in_channels,
        foreground_rate=foreground_rate,
    )


def example_input(spec: "ModelSpec", in_channels: int, count: int = 1) -> Tensor:
    """Return the smallest frames (count, in_channels, H, W) on which a network can be traced.

    Two strides a side: the deepest map of an FPN must not shrink to one pixel.
    """
    side_px = 2 * spec.stride_px
    return torch.zeros(count, in_channels, side_px, side_px)
