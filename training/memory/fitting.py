"""Whether a run fits, and what it must give up of its ladder until it does."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from training.batches import Size, sizes_seen
from training.config import RunConfig, Rung
from training.memory.estimate import Estimate
from training.memory.ladder import CONSEQUENCES, LOOK_RUNGS, LargestFrames, take_rung
from training.memory.limits import MemoryLimit, memory_limit
from training.memory.look_tiles import whole_because
from training.preflight import estimate_run, frame_looked_at, largest_frame, sizes_looked_at
from training.preparation import Prepared

# What a reason says of the phase that does not fit.
_WHEN = {False: "", True: " to look at a whole frame"}
# An estimate is off by some percent (docs/benchmarks/preflight.md), and other programs take memory
# after it was made.
HEADROOM = 1.1

Prepare = Callable[[RunConfig], Prepared]


@dataclass(frozen=True)
class StepDown:
    """One rung that was taken.

    Attributes:
        rung: Its name.
        because: What made it necessary, or what was assumed.
        consequence: What it does to the result.
        step: Optimizer steps taken when it was; 0 before the first.
    """

    rung: Rung
    because: str
    consequence: str
    step: int = 0


@dataclass(frozen=True)
class Outcome:
    """What preflight came to.

    Attributes:
        config: In force, after the rungs.
        prepared: For it.
        frames: What rungs make smaller, of the run as it was asked for.
        estimate: For ``config``.
        limit: Of this process.
        fits: Whether the estimate, with headroom, is within the limit.
        taken: Rungs, in order.
        useless: Rungs that would have changed nothing about the peak.
    """

    config: RunConfig
    prepared: Prepared
    frames: LargestFrames
    estimate: Estimate
    limit: MemoryLimit
    fits: bool
    taken: tuple[StepDown, ...]
    useless: tuple[Rung, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "fits": self.fits,
            "estimate": self.estimate.as_dict(),
            "limit": asdict(self.limit),
            "headroom": HEADROOM,
            "rungs": [asdict(rung) for rung in self.taken],
            "rungs_without_effect": list(self.useless),
            "looks_whole_because": self.frames.whole_because,
        }


def plan_memory(config: RunConfig, prepare_run: Prepare) -> Outcome:
    """Estimate a run, and take rungs of its ladder until it fits or none is left.

    A rung is taken only if it lowers a phase that does not fit and that it is for: tiles are for
    looks at whole frames, the other rungs for all the rest.

    Args:
        config: As it was asked for.
        prepare_run: Builds the network for a configuration.
    """
    prepared = prepare_run(config)
    frames = largest_frames(config, prepared)
    limit = memory_limit(prepared.device, config.memory.limit_bytes)
    if prepared.device.type == "cpu" and config.devices > 1:
        source = f"{limit.source}, shared by {config.devices} processes"
        limit = MemoryLimit(limit.limit_bytes // config.devices, source)
    estimate = estimate_run(config, prepared)
    taken: list[StepDown] = []
    useless: list[Rung] = []
    remaining = list(config.memory.ladder)
    while not _fits(estimate, limit) and remaining:
        rung = remaining[0]
        now = replace(frames, trained=_largest_trained(config, prepared))
        lower = take_rung(config, rung, now)
        if lower is None:
            remaining.pop(0)
            continue
        lower_prepared = prepare_run(lower)
        lower_estimate = estimate_run(lower, lower_prepared)
        if _excess(rung, lower_estimate, limit) >= _excess(rung, estimate, limit):
            useless.append(rung)
            remaining.pop(0)
            continue
        because = (
            f"{gib(_peak(rung, estimate))} are needed{_WHEN[rung in LOOK_RUNGS]} and "
            f"{gib(limit.limit_bytes)} are there ({limit.source}); with it "
            f"{gib(_peak(rung, lower_estimate))}"
        )
        taken.append(StepDown(rung, because, CONSEQUENCES[rung]))
        config, prepared, estimate = lower, lower_prepared, lower_estimate
    fits = _fits(estimate, limit)
    return Outcome(config, prepared, frames, estimate, limit, fits, tuple(taken), tuple(useless))


def largest_frames(config: RunConfig, prepared: Prepared) -> LargestFrames:
    """Return the sizes that rungs make smaller."""
    return LargestFrames(
        _largest_trained(config, prepared),
        frame_looked_at(config, sizes_looked_at(prepared)),
        whole_because(config, prepared.network, prepared.preprocessing),
    )


def _largest_trained(config: RunConfig, prepared: Prepared) -> Size:
    sizes = sizes_seen(prepared.train.items, config.resolution)
    return largest_frame(sizes, together=False)


def _phases(rung: Rung, estimate: Estimate) -> list[int]:
    """Return the peaks of the phases that a rung is for."""
    looks = rung in LOOK_RUNGS
    return [
        peak_bytes
        for name, peak_bytes in estimate.phase_bytes.items()
        if (name == "whole_frame") == looks
    ]


def _peak(rung: Rung, estimate: Estimate) -> int:
    return max(_phases(rung, estimate))


def _excess(rung: Rung, estimate: Estimate, limit: MemoryLimit) -> float:
    """Return by how much the phases that a rung is for are above the limit, together."""
    peaks = _phases(rung, estimate)
    return sum(max(0.0, HEADROOM * peak_bytes - limit.limit_bytes) for peak_bytes in peaks)


def _fits(estimate: Estimate, limit: MemoryLimit) -> bool:
    return HEADROOM * estimate.peak_bytes <= limit.limit_bytes


def gib(amount: int) -> str:
    """Return bytes as a person reads them."""
    return f"{amount / 1024**3:.2f} GiB"
