"""Looking at whole frames in tiles where memory does not hold them, and why some networks can't."""

import copy

from torch import nn

from models import Preprocessing
from models.tiling import SquareTiles, measure_tiling, sees_whole_frame
from training.config import RunConfig
from training.errors import ConfigError

_BOXES_COMPETE = "a detector's boxes compete over the whole frame"
_SEES_EVERYTHING = (
    "each pixel of its answer depends on the whole frame: it pools over the frame (squeeze and "
    "excitation, image pooling) or normalizes by groups"
)


def whole_because(
    config: RunConfig, network: nn.Module, preprocessing: Preprocessing
) -> str | None:
    """Return why the network can look at frames as a whole alone; None if tiles are as good."""
    if config.model.task == "detection":
        return _BOXES_COMPETE
    asked = copy.deepcopy(network).eval()
    if sees_whole_frame(asked, preprocessing.in_channels, preprocessing.stride_px):
        return _SEES_EVERYTHING
    return None


def look_tiles(
    config: RunConfig, network: nn.Module, preprocessing: Preprocessing
) -> SquareTiles | None:
    """Return the tiles in which whole frames are looked at, as the configuration asks; else None.

    Raises:
        ConfigError: The network would answer otherwise than on the whole frame.
    """
    side_px = config.memory.look_tile_px
    if side_px is None:
        return None
    # In training mode a forward pass would move statistics.
    asked = copy.deepcopy(network).eval()
    tiling = measure_tiling(asked, preprocessing.in_channels, preprocessing.stride_px)
    if tiling is None:
        raise ConfigError(
            "tiles_not_exact",
            f"{config.model.architecture} with {config.model.encoder} can't look at frames in "
            f"tiles: {_SEES_EVERYTHING}",
            hint="leave memory.look_tile_px out, or use another encoder or norm.kind",
        )
    return SquareTiles(tiling, side_px)
