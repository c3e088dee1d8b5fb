"""What a run may take and what it gave up for it: decided once, kept in the run's directory."""

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config import CropResolution, RunConfig, Rung, read_config
from training.errors import DivergedError, OutOfMemory
from training.events import EventLog
from training.memory.fitting import (
    HEADROOM,
    Outcome,
    Prepare,
    StepDown,
    gib,
    largest_frames,
    plan_memory,
)
from training.memory.ladder import CONSEQUENCES, LargestFrames, next_rung
from training.memory.limits import forget_peak, peak_bytes
from training.memory.short_rank import take_short_rank
from training.memory.shortage import OUT_OF_MEMORY, is_out_of_memory
from training.memory.step_in_flight import take_trace
from training.preparation import Prepared, prepare
from training.run_directory import RunDirectory, write_whole

logger = logging.getLogger(__name__)


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
        self.content = {**_sizes(outcome.frames), **outcome.as_dict()}
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
        frames = largest_frames(self.config, prepared)
        self.content = {
            **_sizes(frames),
            "rungs": [],
            "looks_whole_because": frames.whole_because,
        }
        self._save()
        self._events.warning(
            "preflight_not_possible",
            f"the run's memory could not be estimated ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200] if str(error) else 'no message'}); it goes on",
        )
        return prepared

    def step_down(self, because: str, step: int, *, looking: bool = False) -> None:
        """Take the next rung, since memory ran out or is assumed to have.

        Args:
            because: What happened.
            step: Optimizer steps taken.
            looking: Whether whole frames were looked at, which other rungs make smaller.

        Raises:
            OutOfMemory: The ladder has no rung left.
        """
        found = self._next_rung(looking=looking)
        if found is None:
            raise OutOfMemory(
                OUT_OF_MEMORY,
                f"{because}, and there is nothing left to give up",
                hint=self._look_hint() if looking else _HINT,
            )
        rung, self.config = found
        taken = StepDown(rung, because, CONSEQUENCES[rung], step)
        self.content["rungs"].append(asdict(taken))
        self.content.pop("died_in_step", None)
        self._save()
        self._tell(taken)
        # All ranks run out in the same step, as likely as not: one step down is for all of them.
        self._run.short_rank.unlink(missing_ok=True)
        # The peak that is compared with the estimate is that of what is tried now.
        forget_peak()

    def _next_rung(self, *, looking: bool) -> tuple[Rung, RunConfig] | None:
        # Memory that runs out before the sizes of frames are known is no matter of a step.
        if "frame" not in self.content:
            return None
        return next_rung(self.config, self._frames(), looking=looking)

    def _look_hint(self) -> str:
        return _look_hint(self.config, self.content.get("looks_whole_because"))

    def report(self, prepared: Prepared) -> dict[str, Any]:
        """Return what was estimated, what was given up and what was measured."""
        measured = peak_bytes(prepared.device)
        kept = (
            "fits",
            "estimate",
            "limit",
            "headroom",
            "rungs",
            "rungs_without_effect",
            "looks_whole_because",
        )
        report = {name: self.content[name] for name in kept if name in self.content}
        estimate = report.get("estimate")
        ratio = round(estimate["peak_bytes"] / measured, 3) if measured and estimate else None
        return {**report, "measured_peak_bytes": measured, "estimated_to_measured": ratio}

    def _judge_predecessor(self) -> None:
        """Step down if the program before this one seems to have died of a lack of memory."""
        short = take_short_rank(self._run.short_rank)
        trace = take_trace(self._run.step_in_flight)
        if short is not None:
            self.step_down(f"memory ran out on rank {short.rank} ({short.said})", short.step)
            return
        if trace is None or "frame" not in self.content:
            return
        if trace.looking:
            # Looks are long, and other deaths in them likely: without a rung the run just goes on.
            if trace.killed_for_memory_since() and self._next_rung(looking=True) is not None:
                self.step_down(
                    "the program died while it looked at whole frames, and since that began the "
                    "kernel has killed a process for memory: taken for this one",
                    trace.step,
                    looking=True,
                )
        elif trace.killed_for_memory_since():
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

    def _frames(self) -> LargestFrames:
        resolution = self.config.resolution
        height, width = self.content["frame"]
        if isinstance(resolution, CropResolution):
            height, width = resolution.height_px, resolution.width_px
        look_height, look_width = self.content.get("look_frame", self.content["frame"])
        return LargestFrames(
            (height, width),
            (look_height, look_width),
            self.content.get("looks_whole_because"),
        )

    def _tell(self, rung: StepDown) -> None:
        self._events.write("memory_step_down", **asdict(rung))
        self._events.warning("memory_step_down", f"{rung.rung}: {rung.because}; {rung.consequence}")

    def _save(self) -> None:
        content = {**self.content, "config": self.config.model_dump(mode="json")}
        write_whole(self._run.memory, json.dumps(content, indent=2) + "\n")


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


def _look_hint(config: RunConfig, whole_because: str | None) -> str:
    """Return what helps a run that has no memory to look at a whole frame."""
    architecture, encoder = config.model.architecture, config.model.encoder
    if whole_because is not None:
        return (
            f"use a smaller encoder: {architecture} with {encoder} can't look at frames in tiles, "
            f"because {whole_because}"
        )
    if "tiles" not in config.memory.ladder:
        return "allow 'tiles' in memory.ladder: whole frames are then looked at in parts"
    return "use a smaller encoder: frames are looked at in the smallest tiles already"


def _does_not_fit(outcome: Outcome) -> OutOfMemory:
    peaks = outcome.estimate.phase_bytes
    phase = max(peaks, key=lambda name: peaks[name])
    gave_up = ", ".join(rung.rung for rung in outcome.taken) or "nothing"
    hint = _HINT
    if phase == "whole_frame":
        hint = _look_hint(outcome.config, outcome.frames.whole_because)
    elif phase != "training_step":
        hint = "the peak is not a training step's, which no rung lowers: use a smaller encoder"
    return OutOfMemory(
        "does_not_fit",
        f"the run needs {gib(outcome.estimate.peak_bytes)} at its peak ({phase}) and "
        f"{gib(int(HEADROOM * outcome.estimate.peak_bytes))} with headroom; "
        f"{gib(outcome.limit.limit_bytes)} are there ({outcome.limit.source}); "
        f"given up: {gave_up}",
        hint=hint,
    )


def _sizes(frames: LargestFrames) -> dict[str, list[int]]:
    return {"frame": list(frames.trained), "look_frame": list(frames.looked_at)}
