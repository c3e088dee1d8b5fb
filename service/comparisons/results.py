"""From the arms' reports and outcomes to numbers side by side and paired differences."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from service.comparisons.outcomes import ArmOutcomes
from service.comparisons.paired import (
    Counts,
    Score,
    bootstrap_interval,
    dice,
    rate,
    sign_test,
    swap_test,
    undecided_bound,
)
from service.comparisons.resources import (
    ArmResult,
    ArmTraining,
    Measure,
    PairResource,
    Rate,
    SizeRecall,
)

SIGNIFICANCE = 0.05


def arm_result(report: Mapping[str, Any], outcomes: ArmOutcomes) -> ArmResult:
    """Return what a finished run's report says of it."""
    metrics, training = report["metrics"], report["training"]
    performance = report["performance"]
    found = report["defects_found"]
    false_regions = sum(frame["false_regions"] for frame in outcomes.frames)
    return ArmResult(
        frames=len(outcomes.frames),
        escape=Rate(**metrics["escape"]),
        overkill=Rate(**metrics["overkill"]),
        dice=metrics["pixels"]["any"]["dice"] if "pixels" in metrics else None,
        ap50=metrics["boxes"]["ap50"] if "boxes" in metrics else None,
        recall=Rate(**found["all"]),
        recall_by_size=tuple(SizeRecall.model_validate(each) for each in found["by_size"]),
        false_regions_per_frame=false_regions / max(len(outcomes.frames), 1),
        training=ArmTraining(
            **{
                name: performance["training"][name]
                for name in ("shown", "count", "megapixels", "seconds", "frames_per_s")
            },
            steps=training["steps"],
            passes=training["epochs"],
            batch_size=training["batch_size"],
            accumulation_steps=training["accumulation_steps"],
            ended_by=training["ended_by"],
        ),
        predicted_frames_per_s=performance["prediction"]["frames_per_s"],
        peak_memory_bytes=performance["memory"]["peak_bytes"],
        peak_memory_of=performance["memory"]["of"],
        peak_memory_since=performance["memory"]["since"],
        resized_labels=training["resized_labels"],
        machine=report["machine"],
    )


def compare_arms(
    results: Mapping[str, ArmResult], outcomes: Mapping[str, ArmOutcomes], reference: str
) -> list[PairResource]:
    """Return every measure of every other finished arm against the reference.

    A difference is shown if it would come up by chance less often than in 5 %, divided by the
    number of arms compared.
    """
    others = [name for name in results if name != reference]
    if reference not in results:
        return []
    limit = SIGNIFICANCE / max(len(others), 1)
    pairs = []
    for name in others:
        for measure, score, ours, theirs, place in _measures(
            outcomes[name], outcomes[reference], results[reference].recall_by_size
        ):
            pairs.append(_pair((name, reference), measure, score, (ours, theirs), place, limit))
    return pairs


def _measures(
    ours: ArmOutcomes, theirs: ArmOutcomes, sizes: tuple[SizeRecall, ...]
) -> Iterator[tuple[Measure, Score, Counts, Counts, dict[str, float | None]]]:
    yield "escape", rate, ours.escapes(), theirs.escapes(), {}
    yield "overkill", rate, ours.overkill(), theirs.overkill(), {}
    yield "defects", rate, ours.found(), theirs.found(), {}
    for size in sizes if len(sizes) > 1 else ():
        place = {"from_px": size.from_px, "below_px": size.below_px}
        yield "defects", rate, ours.found(**place), theirs.found(**place), place
    if theirs.has_pixels:
        yield "dice", dice, ours.pixels(), theirs.pixels(), {}


def _pair(
    names: tuple[str, str],
    measure: Measure,
    score: Score,
    counts: tuple[Counts, Counts],
    place: dict[str, float | None],
    limit: float,
) -> PairResource:
    ours, theirs = counts
    is_rate = measure != "dice"
    if is_rate:
        # Units without a trial, good frames for escapes, have no say and are not counted.
        concerned = theirs[:, 1] > 0
        ours, theirs = ours[concerned], theirs[concerned]
    n = int(theirs[:, 1].sum()) if is_rate else len(theirs)
    value, reference_value = (_score(score, each) for each in (ours, theirs))
    known = value is not None and reference_value is not None
    p = sign_test(ours[:, 0] - theirs[:, 0]) if is_rate else swap_test(ours, theirs, score)
    low, high = _interval(ours, theirs, score, is_rate=is_rate) if known else (None, None)
    return PairResource(
        arm=names[0],
        reference=names[1],
        measure=measure,
        n=n,
        units=len(theirs),
        value=value,
        reference_value=reference_value,
        difference=value - reference_value
        if value is not None and reference_value is not None
        else None,
        low=low,
        high=high,
        p=p,
        is_shown=p < limit,
        **place,
    )


def _interval(
    ours: Counts, theirs: Counts, score: Score, *, is_rate: bool
) -> tuple[float | None, float | None]:
    interval = bootstrap_interval(ours, theirs, score)
    if interval is not None:
        return interval
    if is_rate and len(theirs) and np.array_equal(ours, theirs) and theirs[:, 1].max() == 1:
        bound = undecided_bound(len(theirs))
        return -bound, bound
    return None, None


def _score(score: Score, counts: Counts) -> float | None:
    value = float(score(counts.sum(axis=0).astype(np.float64))) if len(counts) else np.nan
    return None if np.isnan(value) else value
