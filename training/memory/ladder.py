"""The steps down that a run may take to need less memory; pure functions of its configuration."""

from dataclasses import dataclass

from training.batches import Size
from training.config import CropResolution, RunConfig, Rung

# The layers' own default: fewer positions than these save next to nothing on any frame.
DEFAULT_SLOPE_POSITIONS = 1024
# A window smaller than this shows a defect without the surface around it.
SMALLEST_CROP_PX = 256
# Smaller tiles would be border alone; what a network sees is added where it is more.
SMALLEST_TILE_PX = 256

CONSEQUENCES: dict[Rung, str] = {
    "bfloat16": "activations are rounded to eight bits; results differ from float32's",
    "activation_checkpointing": "activations are computed twice; results are the same",
    "accumulation": "frames of a step go through the network one by one; the loss and the "
    "normalization's statistics are each frame's own instead of the batch's",
    "sampled_slopes": "the window's corrections are computed from fewer positions",
    "crops": "training sees windows instead of whole frames; evaluation stays whole",
    "tiles": "whole frames are looked at in tiles with borders as wide as the network sees: the "
    "answers are the whole frame's but for the order of sums, looks take longer, and statistics "
    "are recalibrated on windows, or not where training sees whole frames",
}
# What each rung lowers: looks at whole frames, or all the rest.
LOOK_RUNGS: frozenset[Rung] = frozenset({"tiles"})


@dataclass(frozen=True)
class LargestFrames:
    """Sizes that rungs make smaller.

    Attributes:
        trained: Largest height and width that training sees.
        looked_at: Largest height and width of a whole frame, as the network sees it.
        whole_because: Why frames can't be looked at in tiles; None if they can.
    """

    trained: Size
    looked_at: Size
    whole_because: str | None = None


def take_rung(config: RunConfig, rung: Rung, frames: LargestFrames) -> RunConfig | None:
    """Return the configuration one rung down, or None where the rung has nothing to give.

    ``crops`` and ``tiles`` may be taken again: each time the sides are halved.

    Args:
        config: In force so far.
        rung: To take.
        frames: Of the run.
    """
    if rung == "bfloat16":
        if config.precision == "bfloat16":
            return None
        return config.model_copy(update={"precision": "bfloat16"})
    if rung == "activation_checkpointing":
        return _with_checkpointing(config)
    if rung == "accumulation":
        return _with_accumulation(config)
    if rung == "sampled_slopes":
        return _with_sampled_slopes(config)
    if rung == "tiles":
        return _with_tiles(config, frames)
    return _with_crops(config, frames.trained)


def next_rung(
    config: RunConfig, frames: LargestFrames, *, looking: bool = False
) -> tuple[Rung, RunConfig] | None:
    """Return the first rung of the configuration's ladder that still gives something.

    Args:
        config: In force so far.
        frames: Of the run.
        looking: Whether it is a look at whole frames that must take less, and not a step.
    """
    for rung in config.memory.ladder:
        if (rung in LOOK_RUNGS) != looking:
            continue
        lower = take_rung(config, rung, frames)
        if lower is not None:
            return rung, lower
    return None


def _with_checkpointing(config: RunConfig) -> RunConfig | None:
    if config.memory.activation_checkpointing:
        return None
    section = config.memory.model_copy(update={"activation_checkpointing": True})
    return config.model_copy(update={"memory": section})


def _with_accumulation(config: RunConfig) -> RunConfig | None:
    """Keep the frames of a step and send them through one by one; ``auto`` keeps its kind."""
    if config.batch_size == 1:
        return None
    return config.model_copy(
        update={
            "batch_size": 1,
            "accumulation_steps": config.batch_size * config.accumulation_steps,
        }
    )


def _with_sampled_slopes(config: RunConfig) -> RunConfig | None:
    positions = config.norm_in_force.slope_positions
    if positions is None or positions <= DEFAULT_SLOPE_POSITIONS:
        return None
    norm = config.norm.model_copy(update={"slope_positions": DEFAULT_SLOPE_POSITIONS})
    return config.model_copy(update={"norm": norm})


def _with_crops(config: RunConfig, frame: Size) -> RunConfig | None:
    stride_px = config.model.stride_px
    height_px, width_px = (_half(side_px, stride_px) for side_px in frame)
    if (height_px, width_px) == frame or min(height_px, width_px) < SMALLEST_CROP_PX:
        return None
    crops = CropResolution(mode="crop", height_px=height_px, width_px=width_px)
    return config.model_copy(update={"resolution": crops})


def _with_tiles(config: RunConfig, frames: LargestFrames) -> RunConfig | None:
    largest_px = config.memory.look_tile_px or max(frames.looked_at)
    side_px = _half(largest_px, config.model.stride_px)
    if frames.whole_because is not None or not SMALLEST_TILE_PX <= side_px < largest_px:
        return None
    section = config.memory.model_copy(update={"look_tile_px": side_px})
    return config.model_copy(update={"memory": section})


def _half(side_px: int, stride_px: int) -> int:
    """Return half a side, rounded up to a multiple of the stride."""
    return -(-side_px // (2 * stride_px)) * stride_px
