"""The steps down that a run may take to need less memory; pure functions of its configuration."""

from training.batches import Size
from training.config import CropResolution, RunConfig, Rung

# The layers' own default: fewer positions than these save next to nothing on any frame.
DEFAULT_SLOPE_POSITIONS = 1024
# A window smaller than this shows a defect without the surface around it.
SMALLEST_CROP_PX = 256

CONSEQUENCES: dict[Rung, str] = {
    "bfloat16": "activations are rounded to eight bits; results differ from float32's",
    "activation_checkpointing": "activations are computed twice; results are the same",
    "accumulation": "frames of a step go through the network one by one; the loss and the "
    "normalization's statistics are each frame's own instead of the batch's",
    "sampled_slopes": "the window's corrections are computed from fewer positions",
    "crops": "training sees windows instead of whole frames; evaluation stays whole",
}


def take_rung(config: RunConfig, rung: Rung, frame: Size) -> RunConfig | None:
    """Return the configuration one rung down, or None where the rung has nothing to give.

    ``crops`` may be taken again: each time the window's sides are halved.

    Args:
        config: In force so far.
        rung: To take.
        frame: Largest height and width that training sees.
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
    return _with_crops(config, frame)


def next_rung(config: RunConfig, frame: Size) -> tuple[Rung, RunConfig] | None:
    """Return the first rung of the configuration's ladder that still gives something."""
    for rung in config.memory.ladder:
        lower = take_rung(config, rung, frame)
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


def _half(side_px: int, stride_px: int) -> int:
    """Return half a side, rounded up to a multiple of the stride."""
    return -(-side_px // (2 * stride_px)) * stride_px
