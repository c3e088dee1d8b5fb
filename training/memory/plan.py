"""What a run may take and what it gave up for it: decided once, kept in the run's directory."""

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.batches import Size, sizes_seen
from training.config import CropResolution, RunConfig, Rung, read_config
from training.errors import DivergedError, OutOfMemory
from training.events import EventLog
from training.memory.estimate import Estimate
from training.memory.ladder import CONSEQUENCES, next_rung, take_rung
from training.memory.limits import MemoryLimit, forget_peak, memory_limit, peak_bytes
from training.memory.shortage import is_out_of_memory
from training.memory.step_in_flight import take_trace
from training.preflight import estimate_run, largest_frame
from training.preparation import Prepared, prepare
from training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

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
        frame: Largest height and width that training would see without crops.
        estimate: For ``config``.
        limit: Of this process.
        fits: Whether the estimate, with headroom, is within the limit.
        taken: Rungs, in order.
        useless: Rungs that would have changed nothing about the peak.
    """

    config: RunConfig
    prepared: Prepared
    frame: Size
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
        }


def plan_memory(config: RunConfig, prepare_run: Prepare) -> Outcome:
    """Estimate a run, and take rungs of its ladder until it fits or none is left.

    A rung that leaves the estimate as it is is not taken.

    Args:
        config: As it was asked for.
        prepare_run: Builds the network for a configuration.
    """
    prepared = prepare_run(config)
    frame = frame_seen(config, prepared)
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
        lower = take_rung(config, rung, frame_seen(config, prepared))
        if lower is None:
            remaining.pop(0)
            continue
        lower_prepared = prepare_run(lower)
        lower_estimate = estimate_run(lower, lower_prepared)
        if lower_estimate.peak_bytes >= estimate.peak_bytes:
            useless.append(rung)
            remaining.pop(0)
            continue
        because = (
            f"{_gib(estimate.peak_bytes)} are needed and {_gib(limit.limit_bytes)} are there "
            f"({limit.source}); with it {_gib(lower_estimate.peak_bytes)}"
        )
        taken.append(StepDown(rung, because, CONSEQUENCES[rung]))
        config, prepared, estimate = lower, lower_prepared, lower_estimate
    fits = _fits(estimate, limit)
    return Outcome(config, prepared, frame, estimate, limit, fits, tuple(taken), tuple(useless))


def frame_seen(config: RunConfig, prepared: Prepared) -> Size:
    """Return the largest frame or window that training sees."""
    return largest_frame(sizes_seen(prepared.train.items, config.resolution), together=False)


class MemoryPlan:
    """The configuration that a run really trains with; it survives the program.

    Side effects: keeps ``memory.json`` in the run's directory and writes events.

    Args:
        run: The run.
        config: As it was asked for; a plan made by an earlier attempt takes its place.
        events: Told of every step down.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, events: EventLog) -> None:
        self._run = run
        self._events = events
        self.config = config
        self.content: dict[str, Any] = {"rungs": []}
        if run.memory.exists():
            self.content = json.loads(run.memory.read_text())
            self.config = RunConfig.model_validate(self.content["config"])
        self._judge_predecessor()

    def admit(self, prepare_run: Prepare) -> Prepared:
        """Return the prepared run; the first attempt estimates it and steps down until it fits.

        Raises:
            OutOfMemory: It does not fit, whatever the ladder allows to give up.
        """
        if "frame" in self.content:
            return prepare_run(self.config)
        try:
            outcome = plan_memory(self.config, prepare_run)
        except (DivergedError, RuntimeError, TypeError, AttributeError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            logger.exception("the estimate failed")
            return self._admit_uncounted(prepare_run, error)
        self.content = {"frame": list(outcome.frame), **outcome.as_dict()}
        self._events.write("preflight", **outcome.as_dict())
        for rung in outcome.taken:
            self._tell(rung)
        self.config = outcome.config
        if not outcome.fits and not self.config.dry_run:
            raise _does_not_fit(outcome)
        self._save()
        return outcome.prepared

    def _admit_uncounted(self, prepare_run: Prepare, error: Exception) -> Prepared:
        """Let a run begin whose step can't be gone through without values.

        It can still step down when memory runs out.
        """
        prepared = prepare_run(self.config)
        self.content = {"frame": list(frame_seen(self.config, prepared)), "rungs": []}
        self._save()
        self._events.warning(
            "preflight_not_possible",
            f"the run's memory could not be estimated ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200] if str(error) else 'no message'}); it goes on",
        )
        return prepared

    def step_down(self, because: str, step: int) -> None:
        """Take the next rung, since memory ran out or is assumed to have.

        Raises:
            OutOfMemory: The ladder has no rung left.
        """
        # Memory that runs out before the frames were looked at is no matter of a step.
        found = next_rung(self.config, self._frame()) if "frame" in self.content else None
        if found is None:
            raise OutOfMemory(
                "out_of_memory", f"{because}, and there is nothing left to give up", hint=_HINT
            )
        rung, self.config = found
        taken = StepDown(rung, because, CONSEQUENCES[rung], step)
        self.content["rungs"].append(asdict(taken))
        self.content.pop("died_in_step", None)
        self._save()
        self._tell(taken)
        # The peak that is compared with the estimate is that of what is tried now.
        forget_peak()

    def report(self, prepared: Prepared) -> dict[str, Any]:
        """Return what was estimated, what was given up and what was measured."""
        measured = peak_bytes(prepared.device)
        kept = ("fits", "estimate", "limit", "headroom", "rungs", "rungs_without_effect")
        report = {name: self.content[name] for name in kept if name in self.content}
        estimate = report.get("estimate")
        ratio = round(estimate["peak_bytes"] / measured, 3) if measured and estimate else None
        return {**report, "measured_peak_bytes": measured, "estimated_to_measured": ratio}

    def _judge_predecessor(self) -> None:
        """Step down if the program before this one seems to have died of a lack of memory."""
        trace = take_trace(self._run.step_in_flight)
        if trace is None or "frame" not in self.content:
            return
        if trace.killed_for_memory_since():
            self.step_down(
                f"the program died in step {trace.step}, and since that step began the kernel has "
                "killed a process for memory: taken for this one",
                trace.step - 1,
            )
        elif self.content.get("died_in_step") == trace.step:
            self.step_down(
                f"the program died in step {trace.step} twice in a row: memory is assumed to have "
                "run out",
                trace.step - 1,
            )
        else:
            self.content["died_in_step"] = trace.step
            self._save()

    def _frame(self) -> Size:
        resolution = self.config.resolution
        if isinstance(resolution, CropResolution):
            return resolution.height_px, resolution.width_px
        height, width = self.content["frame"]
        return height, width

    def _tell(self, rung: StepDown) -> None:
        self._events.write("memory_step_down", **asdict(rung))
        self._events.warning("memory_step_down", f"{rung.rung}: {rung.because}; {rung.consequence}")

    def _save(self) -> None:
        content = {**self.content, "config": self.config.model_dump(mode="json")}
        partial = self._run.memory.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.rename(self._run.memory)


def preview(run_dir: Path) -> dict[str, Any]:
    """Return what preflight would say of the run in a directory, and leave it as it is."""
    config = read_config(RunDirectory(run_dir).config)
    with tempfile.TemporaryDirectory() as scratch:
        events = EventLog(Path(scratch) / "events.jsonl")
        try:
            outcome = plan_memory(config, lambda wanted: prepare(wanted, events))
        finally:
            events.close()
    return outcome.as_dict()


_HINT = (
    "use a smaller encoder, batch_size 1, or allow more in memory.ladder: 'bfloat16' and 'crops' "
    "are taken only if they are named"
)


def _does_not_fit(outcome: Outcome) -> OutOfMemory:
    peaks = outcome.estimate.phase_bytes
    phase = max(peaks, key=lambda name: peaks[name])
    gave_up = ", ".join(rung.rung for rung in outcome.taken) or "nothing"
    hint = _HINT
    if phase != "training_step":
        hint = "the peak is not a training step's, which no rung lowers: use a smaller encoder"
    return OutOfMemory(
        "does_not_fit",
        f"the run needs {_gib(outcome.estimate.peak_bytes)} at its peak ({phase}) and "
        f"{_gib(int(HEADROOM * outcome.estimate.peak_bytes))} with headroom; "
        f"{_gib(outcome.limit.limit_bytes)} are there ({outcome.limit.source}); "
        f"given up: {gave_up}",
        hint=hint,
    )


def _fits(estimate: Estimate, limit: MemoryLimit) -> bool:
    return HEADROOM * estimate.peak_bytes <= limit.limit_bytes


def _gib(amount: int) -> str:
    return f"{amount / 1024**3:.2f} GiB"
