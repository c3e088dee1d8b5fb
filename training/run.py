"""One run from its directory's ``config.json`` to its bundle; what ``python -m training`` does."""

import json
import logging
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import cv2
import torch

from data import DataError
from models import (
    Bundle,
    BundleInfo,
    ModelsError,
    OperatingPoint,
    build_network,
    library_versions,
    load_bundle,
    write_bundle,
)
from norm import NormError
from training.batches import planned_counts
from training.checkpoint import load_latest_checkpoint
from training.config import RunConfig, read_config
from training.errors import RunLockedError, TrainingError
from training.events import EventLog, SilentEventLog, read_events
from training.exit_status import EXIT_AGAIN, EXIT_FAILED, EXIT_LOCKED, EXIT_OK
from training.frame_outcomes import defects_found, write_outcomes
from training.frame_reading import open_cache, tell_cache, write_contact_sheet
from training.freezing_parity import told_rounding
from training.judging import Judged, judge_detector, judge_segmentation
from training.launch import all_ranks
from training.loop import TrainingLoop
from training.loop_state import LoopState
from training.memory.plan import MemoryPlan
from training.memory.short_rank import ShortRank, leave_short_rank
from training.memory.shortage import (
    OUT_OF_MEMORY,
    LookRanOut,
    is_out_of_memory,
    looking,
    release_memory,
    return_free_pages,
)
from training.memory.step_in_flight import step_in_flight
from training.performance import peak_memory, training_speed
from training.preparation import Prepared, prepare
from training.progress import Progress
from training.ranks import Ranks
from training.recalibration import recalibrate_if_better
from training.report.page import write_page
from training.report.wording import statements, unproven_escapes, unsupported_figures
from training.run_directory import RunDirectory, write_whole

logger = logging.getLogger(__name__)

# Folding reorders float32 products; on the networks trained so far it moved no pixel by a tenth
# of this, and every report states the difference.  A GPU's library may choose another algorithm for
# the folded convolution than for the other one.
PARITY_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}


def execute(path: Path) -> int:
    """Run or resume the run in a directory and return the program's exit status.

    After `EXIT_AGAIN` it is for a new program to go on: what remains of this one's heap can be
    too much in pieces for any large tensor.

    Side effects: everything is written into the directory; outside it only decoded frames, into the
    cache's directory if the configuration names one.
    """
    run = RunDirectory(path)
    try:
        with run.locked():
            events = EventLog(run.events)
            try:
                return _guarded(run, events)
            finally:
                events.close()
    except RunLockedError as error:
        logger.error("%s", error.detail)  # noqa: TRY400 - a second start is no crash to trace.
        return EXIT_LOCKED


def _guarded(run: RunDirectory, events: EventLog) -> int:
    """Do the work and turn what a person can act on into a ``failed`` event."""
    try:
        return _execute(run, events)
    except _EXPLAINED as error:
        events.write("failed", **_explain(error))
        logger.exception("the run failed")
        return EXIT_FAILED


_EXPLAINED = (TrainingError, ModelsError, DataError, NormError)
# What may come of a lack of memory; of these `is_out_of_memory` picks those that did.
_MAY_BE_MEMORY = (RuntimeError, MemoryError, DataError, cv2.error)


def _explain(error: Exception) -> dict[str, str | None]:
    """Return code, detail and hint of an error that a person can act on."""
    if isinstance(error, DataError):
        place = " ".join(part for part in (error.file, error.where) if part)
        return {"code": error.code, "detail": f"{place}: {error.detail}", "hint": error.hint}
    if isinstance(error, TrainingError | ModelsError):
        return {"code": error.code, "detail": error.detail, "hint": error.hint}
    return {"code": "norm_refused", "detail": str(error), "hint": "see docs/norm.md"}


def _execute(run: RunDirectory, events: EventLog) -> int:
    """Do the work, or take a step down where memory runs out and the configuration allows it."""
    checkpoint, damaged = _latest_checkpoint(run)
    events.write("started", pid=os.getpid(), resumed_from_step=_step_of(checkpoint))
    for name in damaged:
        events.warning("checkpoint_damaged", f"{name} does not match its digest and was skipped")
    config = read_config(run.config)
    with events.heartbeats():
        plan = MemoryPlan(run, config, events)
        short = None
        try:
            finished = _attempt(run, plan, events, checkpoint)
        except _MAY_BE_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            logger.exception("memory ran out")
            short = _first_line(error)
            in_look = isinstance(error, LookRanOut)
        # Outside the handler, whose error holds the tensors of the step that failed.
        if short is not None:
            release_memory()
            step = _step_of(_latest_checkpoint(run)[0]) or 0
            where = " while whole frames were looked at" if in_look else ""
            because = f"memory ran out{where} ({short}); back to step {step}"
            plan.step_down(because, step, looking=in_look)
            return EXIT_AGAIN
    _tell_end(run, events, finished=finished)
    return EXIT_OK


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _step_of(checkpoint: dict[str, Any] | None) -> int | None:
    return checkpoint["state"]["step"] if checkpoint else None


def _tell_end(run: RunDirectory, events: EventLog, *, finished: bool) -> None:
    shutil.rmtree(run.decoded, ignore_errors=True)
    if finished:
        bundle = run.bundle.name if run.bundle.exists() else None
        events.write("finished", bundle=bundle, report=run.report.name)
    else:
        events.write("cancelled")


def _attempt(
    run: RunDirectory, plan: MemoryPlan, events: EventLog, checkpoint: dict[str, Any] | None
) -> bool:
    """Prepare, train from the checkpoint on, and evaluate; return False if it was cancelled."""
    events.write("stage", stage="preparing")
    cache = open_cache(plan.config, run, events)
    prepared = plan.admit(lambda config: prepare(config, events, cache))
    config = plan.config
    if config.dry_run:
        _write_report(run, {"preflight": plan.content})
        return True
    write_contact_sheet(config, prepared, run)
    tell_cache(cache, events)
    # Only now, when nothing is wrong with configuration and frames.
    with all_ranks(run.path, config, _be_other_rank, events) as ranks:
        loop = TrainingLoop(config, prepared, run, events, ranks)
        if checkpoint is not None:
            loop.resume(checkpoint)
        events.write("stage", stage="running")
        epochs_total = -(-loop.steps_total // loop.steps_per_epoch)
        with Progress(events, epochs_total) as progress:
            finished = loop.train(progress)
    if not finished:
        return False
    events.write("stage", stage="evaluating")
    loop.load_best()
    with looking(), step_in_flight(run.step_in_flight, loop.state.step, looking=True):
        recalibration = recalibrate_if_better(config, prepared, loop.state).as_dict()
        events.write("recalibration", **recalibration)
        report = _finish(run, config, prepared, loop, events)
    report["recalibration"] = recalibration
    tell_cache(cache, events)
    _write_report(run, {**report, "memory": plan.report(prepared)})
    write_page(run)
    return True


def _latest_checkpoint(run: RunDirectory) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what the run goes on from, if anything, and the names of damaged checkpoints."""
    checkpoint, damaged = load_latest_checkpoint(run.checkpoints)
    if checkpoint is None:
        # A run that was killed while it rewound.
        checkpoint, _ = load_latest_checkpoint(run.rewind_points)
    return checkpoint, damaged


def _be_other_rank(path: Path, config: RunConfig, ranks: Ranks) -> dict[str, str | None] | None:
    """Train along with the first rank; return why it failed, if it did.

    The first one writes only when all ranks have read, so they all go on from the same checkpoint.
    Where memory runs out on this rank alone, the run's next program steps down for it.
    """
    run, events = RunDirectory(path), SilentEventLog()
    loop: TrainingLoop | None = None
    try:
        cache = open_cache(config, run, events)
        prepared = prepare(config, events, cache, rank=ranks.rank)
        # Dropout must not be that of the first rank's frames; weights are built by now.
        torch.manual_seed(config.seed + ranks.rank)
        loop = TrainingLoop(config, prepared, run, events, ranks)
        checkpoint, _ = _latest_checkpoint(run)
        if checkpoint is not None:
            loop.resume(checkpoint)
        with Progress(events, epochs_total=0, drawn=False) as progress:
            loop.train(progress)
    except (*_EXPLAINED, *_MAY_BE_MEMORY) as error:
        logger.exception("the rank failed")
        if is_out_of_memory(error):
            step = 0 if loop is None else loop.state.step
            leave_short_rank(run.short_rank, ShortRank(ranks.rank, step, _first_line(error)))
            return {"code": OUT_OF_MEMORY, "detail": str(error), "hint": None}
        if isinstance(error, _EXPLAINED):
            return _explain(error)
        raise
    return None


def _finish(
    run: RunDirectory,
    config: RunConfig,
    prepared: Prepared,
    loop: TrainingLoop,
    events: EventLog,
) -> dict[str, Any]:
    """Freeze, choose the operating point, write the bundle and judge what was written."""
    info = BundleInfo(
        task=prepared.model.task,
        classes=prepared.manifest.classes,
        model=prepared.model,
        norm=config.norm_in_force,
        preprocessing=prepared.preprocessing,
        operating_point=OperatingPoint(classes={}),
        dataset_digest=prepared.manifest.digest,
        sampling=sampling_summary(config, prepared, loop.state),
        libraries=library_versions(),
        ema_decay=config.ema.decay if config.ema else None,
    )
    network = build_network(info)
    network.load_state_dict(loop.state.best_weights)
    bundle = Bundle(info=info, network=network.eval())
    return_free_pages()
    judge = judge_detector if prepared.model.task == "detection" else judge_segmentation
    tolerance = PARITY_TOLERANCE[prepared.device.type]
    judged = judge(prepared, bundle, tolerance, run.gallery, config.escape_constraint)
    if (told := told_rounding(judged.parity)) is not None:
        events.warning("parity_by_rounding", told)
    _tell_point(judged.point, events)
    write_outcomes(run.test_frames, judged.outcomes)
    metrics = judged.metrics
    for lacking in unsupported_figures(metrics):
        events.warning("test_frames_lack", lacking)
    update = {"operating_point": judged.point, "metrics": metrics}
    write_bundle(
        run.bundle,
        info.model_copy(update=update),
        loop.state.best_weights,
        part_scores=judged.part_scores,
    )
    load_bundle(run.bundle)
    return {
        **_judged_summary(judged),
        **_trained_summary(config, prepared),
        "task": info.task,
        "model": info.model.model_dump(mode="json"),
        "training": _training_summary(loop),
        "performance": {
            "training": training_speed(config, loop.state),
            "prediction": judged.prediction,
            "memory": peak_memory(prepared.device, resumed=_has_resumed(run)),
        },
    }


def _judged_summary(judged: Judged) -> dict[str, Any]:
    """Return what the report says of the frozen model."""
    return {
        "metrics": judged.metrics,
        "evaluation": judged.details,
        "statements": statements(judged.metrics),
        "unsupported": unsupported_figures(judged.metrics),
        "baselines": judged.baselines,
        "operating_point": judged.point.model_dump(mode="json"),
        "parity": judged.parity,
        "folding": judged.folding.as_dict(),
        "defects_found": defects_found(judged.outcomes),
    }


def _trained_summary(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """Return what the report says of what the network was trained on and as."""
    return {
        "dataset": {
            "digest": prepared.manifest.digest,
            "splits": {
                name: {"frames": split.frames, "defective": split.defective, "good": split.good}
                for name, split in prepared.manifest.statistics().splits.items()
            },
        },
        "norm": {
            "asked": config.norm.kind,
            "spec": config.norm_in_force.model_dump(exclude_none=True),
            **prepared.conversion.as_dict(),
        },
        "weights": prepared.weights.as_dict() if prepared.weights else None,
        "measurements": vars(prepared.measurements),
        "machine": _machine(prepared),
    }


def _tell_point(point: OperatingPoint, events: EventLog) -> None:
    """Warn of thresholds that calibration frames could not support, or not as was asked."""
    for name, chosen in point.classes.items():
        if chosen.basis == "default":
            events.warning("threshold_not_supported", f"{name}: {chosen.reason}")
    for sentence in unproven_escapes(point):
        events.warning("escape_not_proven", sentence)


def _has_resumed(run: RunDirectory) -> bool:
    return [event["kind"] for event in read_events(run.events)].count("started") > 1


def _training_summary(loop: TrainingLoop) -> dict[str, Any]:
    state = loop.state
    labels = loop.prepared.resized_labels
    return {
        "steps": state.step,
        "epochs": loop.epoch,
        "seconds": round(state.elapsed_s, 1),
        "ended_by": state.ended_by,
        "rewinds": state.rewinds,
        "best_epoch": state.best_epoch,
        f"calibration_{loop.prepared.task.score_name}": state.best_score,
        "sampling": sampling_summary(loop.config, loop.prepared, state),
        "padded_pixel_share": state.padded_pixels / max(state.seen_pixels, 1),
        "resolution": loop.config.resolution.model_dump(),
        "resized_labels": labels.as_dict() if labels else None,
        "batch_size": loop.config.batch_size,
        "accumulation_steps": loop.config.accumulation_steps,
        "images_per_step": loop.config.images_per_step,
        "devices": loop.config.devices,
        "ema": loop.config.ema.model_dump() if loop.config.ema else None,
    }


def sampling_summary(config: RunConfig, prepared: Prepared, state: LoopState) -> dict[str, Any]:
    """Return how often training saw defects, which is not how often the line makes them."""
    planned = planned_counts(prepared.train.items, config)
    return {
        "defect_rate_asked": config.sampling.defect_rate,
        "defect_rate_planned": planned.defect_rate if planned else None,
        "defect_rate_seen": state.seen_defective / max(state.seen_frames, 1),
        "frames_with_defects": sum(item.is_defective for item in prepared.train.items)
        / len(prepared.train.items),
        "paste_rate": config.augmentation.paste_rate,
    }


def _machine(prepared: Prepared) -> dict[str, Any]:
    device = prepared.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": str(prepared.precision).removeprefix("torch."),
        "platform": platform.platform(),
    }


def _write_report(run: RunDirectory, report: dict[str, Any]) -> None:
    write_whole(run.report, json.dumps(report, indent=2) + "\n")
