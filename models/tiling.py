"""Frames larger than memory allows, in tiles whose answers are those of the whole frame.

Each tile carries a border as wide as the network sees. What a tile's edge does to the network's
padding then ends inside the border, which is cut away: there is no seam, and the result is the
whole frame's but for the order of sums.
"""

import copy
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.engines import Engine
from models.preprocessing import Pixels

# What the largest difference from the whole frame is, in probability: sums in another order.
TILING_TOLERANCE = 1e-4
# Besides activations a forward holds what its convolutions rearrange for themselves.
_WORKING_MEMORY_FACTOR = 2.0
_FIRST_STRIDES, _MOST_STRIDES = 12, 96


@dataclass(frozen=True)
class Tiling:
    """How a network's frames are cut.

    Attributes:
        stride_px: Tiles begin at multiples of it, so that every layer's grid is the whole frame's.
        border_px: As wide as the network sees, a multiple of the stride.
        bytes_per_px: What a forward holds for each pixel.
    """

    stride_px: int
    border_px: int
    bytes_per_px: float

    def tiles(self, size: tuple[int, int], memory_bytes: float) -> list["Tile"]:
        """Return tiles that cover a padded frame and fit the memory as far as borders allow.

        Args:
            size: Height and width, multiples of the stride.
            memory_bytes: What one forward may hold.
        """
        area_px = memory_bytes / self.bytes_per_px
        side_px = math.floor(math.sqrt(area_px)) - 2 * self.border_px
        return self.cut(size, max(self.stride_px, side_px // self.stride_px * self.stride_px))

    def cut(self, size: tuple[int, int], core_px: int) -> list["Tile"]:
        """Return tiles with square cores of a side that cover a padded frame."""
        return [
            Tile.of(top, left, core_px, self.border_px, size)
            for top in range(0, size[0], core_px)
            for left in range(0, size[1], core_px)
        ]


@dataclass(frozen=True)
class SquareTiles:
    """Tiles of one size, whatever memory there is.

    Attributes:
        tiling: How the network's frames are cut.
        side_px: Wanted of a tile with its borders.
    """

    tiling: Tiling
    side_px: int

    @property
    def seen_px(self) -> int:
        """Side of what one forward sees, at least three borders: less would be border alone."""
        return self._core_px + 2 * self.tiling.border_px

    @property
    def _core_px(self) -> int:
        stride_px, border_px = self.tiling.stride_px, self.tiling.border_px
        fitting_px = (self.side_px - 2 * border_px) // stride_px * stride_px
        return max(stride_px, border_px, fitting_px)

    def __call__(self, size: tuple[int, int], count: int) -> "list[Tile] | None":  # noqa: ARG002 - each tile holds all frames.
        """Return tiles that cover padded frames of a size; None where one holds the frame whole."""
        if max(size) <= self.seen_px:
            return None
        return self.tiling.cut(size, self._core_px)


@dataclass(frozen=True)
class Tile:
    """What a tile sees and what of it is kept, as slices of rows and columns of the frame."""

    seen: tuple[slice, slice]
    kept: tuple[slice, slice]

    @classmethod
    def of(cls, top: int, left: int, core_px: int, border_px: int, size: tuple[int, int]) -> "Tile":
        """Return the tile whose core begins at a corner; the frame's own edges need no border."""
        starts, sides = (top, left), size
        kept = tuple(
            slice(start, min(start + core_px, side))
            for start, side in zip(starts, sides, strict=True)
        )
        seen = tuple(
            slice(max(0, part.start - border_px), min(side, part.stop + border_px))
            for part, side in zip(kept, sides, strict=True)
        )
        return cls((seen[0], seen[1]), (kept[0], kept[1]))

    @property
    def inner(self) -> tuple[slice, slice]:
        """What is kept, as slices of the tile itself."""
        rows, columns = (
            slice(kept.start - seen.start, kept.stop - seen.start)
            for kept, seen in zip(self.kept, self.seen, strict=True)
        )
        return rows, columns


def tiled_probabilities(engine: Engine, pixels: Pixels, tiles: list[Tile]) -> NDArray[np.float32]:
    """Ask an engine tile by tile; see `Engine.probabilities`."""
    answer: NDArray[np.float32] | None = None
    for tile in tiles:
        part: Any = pixels[:, *tile.seen]
        found = engine.probabilities(part)
        if answer is None:
            answer = np.empty((*found.shape[:2], *pixels.shape[1:3]), np.float32)
        answer[:, :, *tile.kept] = found[:, :, *tile.inner]
    assert answer is not None
    return answer


def measure_tiling(network: nn.Module, in_channels: int, stride_px: int) -> Tiling | None:
    """Return how a network's frames are cut; None if each output sees the whole frame.

    Pooling over the whole frame (squeeze and excitation, image pooling, normalization by groups)
    makes every output depend on every pixel, and no border is wide enough.

    Args:
        network: Folded, in eval mode; it is copied.
        in_channels: Of its input.
        stride_px: The frame's padding.
    """
    if sees_whole_frame(network, in_channels, stride_px):
        return None
    return Tiling(
        stride_px,
        stride_px * math.ceil(_reach_px(network, in_channels, stride_px) / stride_px),
        bytes_per_px(network, in_channels, stride_px),
    )


@torch.inference_mode()
def _reach_px(network: nn.Module, in_channels: int, stride_px: int) -> int:
    """Return how far from a pixel outputs depend on it, by structure and not by weights.

    In a copy all weights are positive, no two alike, and all shifts zero: from one cell of the
    coarsest grid that alone is not zero, everything spreads that can, and nothing cancels.
    """
    positive = copy.deepcopy(network).cpu().double().eval()
    for module in positive.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in positive.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.uniform_(0.5, 1.5, generator=generator).div_(parameter[0].numel())
    return max(_reach_along(positive, in_channels, stride_px, axis) for axis in (2, 3))


def _reach_along(network: nn.Module, in_channels: int, stride_px: int, axis: int) -> int:
    """Return the reach along rows or columns: a strip shows it as well as a square does."""
    strides = _FIRST_STRIDES
    while True:
        shape = [1, in_channels, 2 * stride_px, 2 * stride_px]
        shape[axis] = 2 * strides * stride_px
        strip = torch.zeros(shape, dtype=torch.float64)
        middle = strides * stride_px
        background = network(strip)
        strip.narrow(axis, middle, stride_px).fill_(1.0)
        reached = (network(strip) != background).movedim(axis, 0).flatten(1).any(dim=1)
        places = torch.nonzero(reached).flatten()
        first, last = int(places[0]), int(places[-1])
        if (first > 0 and last < shape[axis] - 1) or strides >= _MOST_STRIDES:
            return max(middle - first, last - (middle + stride_px - 1), 0)
        strides *= 2


@torch.inference_mode()
def sees_whole_frame(network: nn.Module, in_channels: int, stride_px: int) -> bool:
    """Return whether a layer pools or normalizes over the whole frame, so that no tile will do.

    Args:
        network: In eval mode.
        in_channels: Of its input.
        stride_px: The frame's padding.
    """
    pooled = False

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal pooled
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:] == (1, 1):
            pooled = True

    by_frame = any(
        isinstance(module, nn.GroupNorm | nn.InstanceNorm2d) for module in network.modules()
    )
    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        network(_zeros(network, in_channels, 4 * stride_px))
    finally:
        for handle in handles:
            handle.remove()
    return pooled or by_frame


@torch.inference_mode()
def bytes_per_px(network: nn.Module, in_channels: int, stride_px: int) -> float:
    """Return what a forward holds at its height for each pixel of the frame, in float32.

    Counted from the outputs of layers that are alive together.
    """
    alive = peak = 0

    def dies(size: int) -> None:
        nonlocal alive
        alive -= size

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal alive, peak
        for tensor in _tensors(output):
            size = tensor.numel() * tensor.element_size()
            alive += size
            peak = max(peak, alive)
            weakref.finalize(tensor, dies, size)

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_hook(count) for module in leaves]
    side_px = 4 * stride_px
    try:
        network(_zeros(network, in_channels, side_px))
    finally:
        for handle in handles:
            handle.remove()
    return _WORKING_MEMORY_FACTOR * peak / side_px**2


def _zeros(network: nn.Module, in_channels: int, side_px: int) -> Tensor:
    parameter = next(network.parameters())
    return parameter.new_zeros(1, in_channels, side_px, side_px)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
