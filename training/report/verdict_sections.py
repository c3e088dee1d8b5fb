"""What the plant asks: escape, overkill, and what the figures can't tell."""

from typing import Any

from training.report.axes import Axis
from training.report.blocks import Plot, Plots, RunRecord, Section, Sentences, Table
from training.report.plots import Series, draw_plot
from training.report.wording import caveats, say_certificate, say_rate

_CALIBRATED = (
    "On the calibration frames alone, which also chose the epoch that was kept, and neither taught "
    "the network nor judge it here: "
)
_RULES = {
    "segmentation": _CALIBRATED + "the threshold of the highest pixel Dice, then the least area of "
    "a region of the highest F1 of defects found.",
    "detection": _CALIBRATED + "the score of the highest F1 of defects found.",
}


_CERTIFIED = (
    "Of the thresholds that prove the bound, calibration chose the one that rejects the fewest "
    "good parts; the bound holds all the same, for parts drawn like those of calibration. A class "
    "that is proven has the threshold of its proof in place of the one chosen without."
)


def reservations(run: RunRecord) -> Section | None:
    """Return what a reader must know before the figures are relied on."""
    if "escape" not in run.metrics:
        return None
    return Section("Before you rely on it", [Sentences(caveats(run.report), is_list=True)])


def warnings(run: RunRecord) -> Section | None:
    """Return what the run warned of, each thing once with how often."""
    counts: dict[str, int] = {}
    for event in run.events:
        if event["kind"] == "warning" and event.get("code") != "test_frames_lack":
            detail = str(event.get("detail", ""))
            counts[detail] = counts.get(detail, 0) + 1
    texts = [f"{text} ({n} times)" if n > 1 else text for text, n in counts.items()]
    return Section("Warnings of the run", [Sentences(texts, is_list=True)]) if texts else None


def escape_and_overkill(run: RunRecord) -> Section | None:
    """Return both rates by frame and by part, and what other thresholds would give."""
    metrics = run.metrics
    if "escape" not in metrics:
        return None
    rows = [["frames", say_rate(metrics["escape"]), say_rate(metrics["overkill"])]]
    by_part = metrics.get("by_part", {})
    if by_part.get("most_frames", 0) > 1:
        name = f"parts (up to {by_part['most_frames']} frames each)"
        rows.append([name, say_rate(by_part["escape"]), say_rate(by_part["overkill"])])
    table = Table(
        ("unit", "escape: defective called OK", "overkill: good called NG"),
        rows,
        "Ranges are exact (Clopper-Pearson) 95 % intervals. Escape is a share of defective units, "
        "overkill a share of good ones. A part is NG if any of its frames is.",
    )
    curve = _curve(run, "parts" if len(rows) > 1 else "frames")
    return Section("Escape and overkill", [table, *curve])


def _curve(run: RunRecord, unit: str) -> list[Plots]:
    rungs = run.evaluation.get("escape_overkill", [])
    known = [name for name in ("escape", "overkill") if rungs and rungs[0][unit][name]["n"]]
    plots = [_against_each_other(rungs, unit)] if len(known) == 2 else []
    plots += [_by_threshold(rungs, unit, known)] if known else []
    return [Plots(plots)] if plots else []


def _against_each_other(rungs: list[dict[str, Any]], unit: str) -> Plot:
    points = [(rung[unit]["overkill"]["rate"], rung[unit]["escape"]["rate"]) for rung in rungs]
    drawing = draw_plot(
        [Series("escape", points, highlight=_chosen_point(rungs, unit))],
        Axis(f"overkill, share of good {unit}", is_percent=True),
        Axis(f"escape, share of defective {unit}", is_percent=True),
        "escape against overkill",
    )
    caption = (
        "Escape against overkill as all thresholds move together. The ring is the chosen point."
    )
    return Plot(drawing, caption)


def _by_threshold(rungs: list[dict[str, Any]], unit: str, known: list[str]) -> Plot:
    offsets = [rung["log_odds_offset"] for rung in rungs]
    series = []
    for name in known:
        rates = [rung[unit][name] for rung in rungs]
        points = [(x, rate["rate"]) for x, rate in zip(offsets, rates, strict=True)]
        series.append(Series(name, points, [(rate["low"], rate["high"]) for rate in rates]))
    drawing = draw_plot(
        series,
        Axis("all thresholds, lower to higher (log-odds; 0 is chosen)", offsets[0], offsets[-1]),
        Axis(f"share of {unit}", is_percent=True),
        f"{' and '.join(known)} by threshold",
    )
    caption = (
        f"{' and '.join(known).capitalize()} by threshold, with exact 95 % intervals as bands. "
        "Points beside the chosen one were seen on the test frames: choose none of them by this "
        "plot."
    )
    return Plot(drawing, caption)


def _chosen_point(rungs: list[dict[str, Any]], unit: str) -> tuple[tuple[float, float], str]:
    chosen = next(rung for rung in rungs if rung["is_chosen"])[unit]
    escape, overkill = chosen["escape"], chosen["overkill"]
    what = f"chosen: escape {say_rate(escape)}, overkill {say_rate(overkill)}"
    return (overkill["rate"], escape["rate"]), what


def thresholds(run: RunRecord) -> Section | None:
    """Return the operating point and what it was chosen by."""
    point = run.report.get("operating_point")
    if point is None:
        return None
    rows = [
        [
            name,
            f"{chosen['threshold']:.3f}",
            f"{chosen['min_area_px']} px",
            chosen["basis"],
            chosen["reason"] or _evidence(chosen["evidence"]),
        ]
        for name, chosen in point["classes"].items()
    ]
    rule = _RULES.get(run.report.get("task", ""), _RULES["segmentation"])
    table = Table(("class", "threshold", "least area", "basis", "evidence"), rows)
    told = [
        say_certificate(name, chosen["evidence"]["certificate"])
        for name, chosen in point["classes"].items()
        if "certificate" in chosen["evidence"]
    ]
    if told:
        told.append(_CERTIFIED)
    return Section("How thresholds were chosen", [Sentences([rule, *told]), table])


def _evidence(evidence: dict[str, Any]) -> str:
    evidence = {name: value for name, value in evidence.items() if name != "certificate"}
    if not {"labelled", "found", "false", "frames"} <= evidence.keys():
        return ", ".join(f"{name} {value}" for name, value in evidence.items())
    counts = (
        f"{evidence['found']} of {evidence['labelled']} defects found, {evidence['false']} false "
        f"regions on {evidence['frames']} frames"
    )
    if "pixel_dice" in evidence:
        return f"{counts}; pixel Dice {evidence['pixel_dice']:.3f}"
    return f"{counts}; F1 {evidence['f1']:.3f}"
