"""True statistics at the final weights, kept where the calibration frames say that they help.

Running statistics are averages over the last steps of training, of single batches, varied frames
or windows.  What the network meets in service are whole frames as they are: `norm.recalibrate`
measures those, at the weights that are shipped.  A run on windows that is too short for enough of
them, or whose memory does not hold one, measures windows of many frames, each where chance puts it
and not where defects are.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import Pixels, frame_to_tensor, pad_to_multiple
from norm import RecalibrationError, RecalibrationReport, plain_state_dict, recalibrate
from training.config import CropResolution, RecalibrationSection, RunConfig
from training.errors import DivergedError
from training.evenly_spread import evenly_spread
from training.loop_state import LoopState
from training.preparation import Prepared

# A backward pass costs about twice its forward pass.
PASSES_OF_A_STEP = 3
FEWEST_FRAMES = 2
# Rather than fewer whole frames, as many pixels are measured in windows of many frames.
FEWEST_WHOLE_FRAMES = 8
# Group norm has no statistics, and frozen ones were part of what the weights were trained with.
RECALIBRATED_KINDS = frozenset({"bn", "cbn", "brn"})


@dataclass(frozen=True)
class Recalibration:
    """What came of it; ``report.json`` holds it.

    Attributes:
        kept: Whether the shipped model has the new statistics.
        reason: Why, or why not.
        frames: Training frames that were measured.
        window_px: Height and width of the one window of each of them that was; None: all of it.
        layers: Layers that were.
        largest_change: Of a layer's statistics, in deviations.
        calibration_dice_before: With training's own statistics.
        calibration_dice_after: With the new ones.
    """

    kept: bool
    reason: str
    frames: int = 0
    window_px: tuple[int, int] | None = None
    layers: int = 0
    largest_change: float | None = None
    calibration_dice_before: float | None = None
    calibration_dice_after: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        return asdict(self)


class TrainingFrames:
    """Some training frames, evenly spread and as they are, as often as they are asked for.

    Args:
        prepared: The run's.
        count: At most so many.
        window_px: Height and width of a window of each, the same one each time; None takes them
            whole.
        seed: Of the windows' places.
    """

    def __init__(
        self,
        prepared: Prepared,
        count: int,
        window_px: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self._prepared = prepared
        self._window_px = window_px
        self._seed = seed
        self._indices = evenly_spread(len(prepared.train_whole), count)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield tensors (1, C, H, W)."""
        preprocessing = self._prepared.preprocessing
        for index in self._indices:
            frame = self._prepared.train_whole.frame(index, epoch=0)
            tensor, _ = frame_to_tensor(self._seen(frame.pixels, index), preprocessing)
            yield pad_to_multiple(tensor[None], preprocessing.stride_px)

    def _seen(self, pixels: Pixels, index: int) -> Pixels:
        if self._window_px is None:
            return pixels
        height, width = (
            min(side, whole) for side, whole in zip(self._window_px, pixels.shape[:2], strict=True)
        )
        chance = np.random.default_rng((self._seed, index))
        top = chance.integers(pixels.shape[0] - height + 1)
        left = chance.integers(pixels.shape[1] - width + 1)
        return pixels[top : top + height, left : left + width]


def affordable_frames(
    section: RecalibrationSection, *, layers: int, frame_pixels: float, seen_pixels: int
) -> int:
    """Return how many frames may be measured at a given share of what training has cost.

    Costs are counted in pixels that went through the network and never in seconds, so that a
    resumed run, or one on another machine, comes to the same number.

    Args:
        section: The configuration's.
        layers: To be recalibrated; two of them cost a forward pass, and all of them two more.
        frame_pixels: Of one frame.
        seen_pixels: In training.
    """
    passes = layers / 2 + 2
    affordable = section.max_cost * PASSES_OF_A_STEP * seen_pixels / (passes * frame_pixels)
    return min(section.max_frames, int(affordable))


def recalibrate_if_better(config: RunConfig, prepared: Prepared, state: LoopState) -> Recalibration:
    """Measure the best weights' true statistics and keep them if the calibration Dice rises.

    Args:
        config: The run's.
        prepared: Its network holds the best weights; afterwards it holds ``state.best_weights``.
        state: Its best weights are replaced if the new statistics are kept.
    """
    section = config.recalibration
    if section is None:
        return Recalibration(kept=False, reason="it is switched off")
    if config.model.task == "detection":
        return Recalibration(kept=False, reason="a detector ships the statistics of training")
    if prepared.look_tiles is not None and _window_of(config) is None:
        reason = "memory does not hold whole frames, whose statistics it would measure"
        return Recalibration(kept=False, reason=reason)
    kind = config.norm_in_force.kind
    if kind not in RECALIBRATED_KINDS:
        return Recalibration(kept=False, reason=f"norm.kind {kind!r} measures nothing in training")
    count, window_px = _affordable(section, config, prepared, state)
    if count < FEWEST_FRAMES:
        reason = f"at recalibration.max_cost {section.max_cost} training was too short for it"
        return Recalibration(kept=False, reason=reason)
    if not any(item.is_defective for item in prepared.calibration.items):
        return Recalibration(kept=False, reason="no calibration frame shows a defect to judge by")
    try:
        frames = TrainingFrames(prepared, count, window_px, config.seed)
        report = recalibrate(prepared.network, frames)
        after = prepared.look().score
    except (RecalibrationError, DivergedError) as error:
        _load(prepared.network, state)
        return Recalibration(kept=False, reason=f"it failed: {error}")
    return _judge(prepared, state, report, after, window_px)


def _window_of(config: RunConfig) -> tuple[int, int] | None:
    """Return the height and width of the windows that a run trains on; None of one on frames."""
    if not isinstance(config.resolution, CropResolution):
        return None
    return config.resolution.height_px, config.resolution.width_px


def _affordable(
    section: RecalibrationSection, config: RunConfig, prepared: Prepared, state: LoopState
) -> tuple[int, tuple[int, int] | None]:
    """Return how many frames are measured, and the window of each; None takes them whole."""
    items = prepared.train.items

    def count(frame_pixels: float) -> int:
        affordable = affordable_frames(
            section,
            layers=_layer_count(prepared.network),
            frame_pixels=frame_pixels,
            seen_pixels=state.seen_pixels,
        )
        return min(affordable, len(items))

    mean_pixels = sum(item.height * item.width for item in items) / len(items)
    whole = count(config.resize_factor**2 * mean_pixels)
    window_px = _window_of(config)
    enough = whole >= min(FEWEST_WHOLE_FRAMES, section.max_frames, len(items))
    if window_px is None or (enough and prepared.look_tiles is None):
        return whole, None
    return count(window_px[0] * window_px[1]), window_px


def _judge(
    prepared: Prepared,
    state: LoopState,
    report: RecalibrationReport,
    after: float | None,
    window_px: tuple[int, int] | None,
) -> Recalibration:
    before = state.best_score
    kept = after is not None and after > before
    if kept:
        state.best_weights = {
            name: tensor.detach().cpu().clone()
            for name, tensor in plain_state_dict(prepared.network).items()
        }
    else:
        _load(prepared.network, state)
    return Recalibration(
        kept=kept,
        reason=f"calibration Dice {'rose' if kept else 'did not rise'}",
        frames=report.frames,
        window_px=window_px,
        layers=len(report.recalibrated),
        largest_change=max(layer.change for layer in report.recalibrated),
        calibration_dice_before=before,
        calibration_dice_after=after,
    )


def _layer_count(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def _load(network: nn.Module, state: LoopState) -> None:
    network.load_state_dict(network.state_dict() | state.best_weights)
