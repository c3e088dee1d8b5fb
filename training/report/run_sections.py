"""How the model came about: data, training curve, machine."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.report.axes import fitting_axis
from training.report.blocks import Block, Facts, Plot, Plots, RunRecord, Section, Table
from training.report.plots import Point, Series, draw_plot

# A curve of more points than the plot has pixels is averaged over stretches of steps.
MOST_POINTS = 300

_ENDED_BY = {
    "steps": "all planned steps done",
    "max_minutes": "time limit reached",
    "early_stopping": "no more gain on calibration frames",
}
# Key in a metrics event, what it is, and whether factors matter more than differences.
_CURVES = (
    ("loss", "loss", True),
    ("calibration_dice", "calibration Dice", False),
    ("calibration_ap50", "calibration AP50", False),
    ("learning_rate", "learning rate", False),
    ("gradient_norm", "gradient norm before clipping", True),
)


def training(run: RunRecord) -> Section | None:
    """Return what was trained, how long, what ended it, and its curves."""
    summary = run.report.get("training")
    if summary is None:
        return None
    ended = _ENDED_BY.get(summary["ended_by"], summary["ended_by"])
    pairs = [
        (model_name(run.report), "network"),
        (norm_name(run.report), "normalization in force"),
        (f"{summary['steps']:,}", f"steps of {summary['batch_size']}, {summary['epochs']} epochs"),
        (_duration(summary["seconds"]), "of training"),
        (ended, "ended it"),
        (f"epoch {summary['best_epoch']}", f"was kept, {_score_kept(summary)}"),
    ]
    blocks: list[Block] = [Facts(pairs)]
    plots = [plot for curve in _CURVES for plot in _curve_plot(run.events, *curve)]
    return Section("Training", [*blocks, Plots(plots)] if plots else blocks)


def _score_kept(summary: Mapping[str, Any]) -> str:
    if "calibration_ap50" in summary:
        return f"AP50 {summary['calibration_ap50']:.3f}"
    return f"Dice {summary['calibration_dice']:.3f}"


def _curve_plot(
    events: Sequence[Mapping[str, Any]], key: str, label: str, by_factors: bool
) -> list[Plot]:
    points = curve_points(events, key)
    if len(points) < 2:
        return []
    shown = averaged(points)
    drawing = draw_plot(
        [Series(label, shown)],
        fitting_axis("step", [x for x, _ in shown]),
        fitting_axis(label, [y for _, y in shown], is_log=by_factors),
        label,
    )
    note = f", averaged over {-(-len(points) // len(shown))} values a point"
    return [
        Plot(drawing, f"{label[0].upper()}{label[1:]}{note if len(shown) < len(points) else ''}.")
    ]


def curve_points(events: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """Return a value over the steps as the run ended up with them.

    A run that was rewound, or killed and resumed, did some steps twice: the first time is dropped.
    """
    points: list[Point] = []
    for event in events:
        if event["kind"] != "metrics" or event["values"].get(key) is None:
            continue
        step = event["step"]
        while points and points[-1][0] >= step:
            points.pop()
        points.append((step, event["values"][key]))
    return points


def averaged(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most so many points, each the mean of equally many neighbours."""
    length = -(-len(points) // most)
    pieces = [points[start : start + length] for start in range(0, len(points), length)]
    return [
        (sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece))
        for piece in pieces
    ]


def provenance(run: RunRecord) -> Section | None:
    """Return what is needed to do it again, and how exact the figures are."""
    report = run.report
    rows = [
        ["data-set version", report.get("dataset", {}).get("digest")],
        *(_split_row(name, split) for name, split in _splits(report)),
        ["machine", _machine(report.get("machine", {}))],
        ["frozen model against the trained one", _parity(report)],
        ["normalization layers converted", _layers(report.get("norm", {}))],
        ["their statistics", _recalibration(report.get("recalibration"))],
        ["resolution of scores", _resolution(run.evaluation.get("score_resolution"))],
        ["judging the test frames", _seconds(run.evaluation.get("seconds"))],
    ]
    told = [[name, text] for name, text in rows if text]
    return Section("Where it comes from", [Table(("what", "which"), told)]) if told else None


def model_name(report: Mapping[str, Any]) -> str:
    """Return the network in words."""
    model = report.get("model", {})
    parts = [model.get("architecture"), model.get("encoder")]
    return " with ".join(str(part) for part in parts if part) or "unknown"


def norm_name(report: Mapping[str, Any]) -> str:
    """Return the normalization in force with its window."""
    spec = report.get("norm", {}).get("spec", {})
    window = spec.get("window_size")
    kind = str(spec.get("kind", "unknown"))
    return f"{kind}, window {window}" if window else kind


def _splits(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(report.get("dataset", {}).get("splits", {}).items())


def _split_row(name: str, split: Mapping[str, Any]) -> list[str]:
    counts = f"{split['frames']:,}, {split['defective']:,} defective, {split['good']:,} good"
    return [f"{name} frames", counts]


def _machine(machine: Mapping[str, Any]) -> str:
    if not machine:
        return ""
    return (
        f"{machine['device']}, CPU threads {machine['threads']}, {machine['precision']}; "
        f"{machine['platform']}"
    )


def _parity(report: Mapping[str, Any]) -> str:
    parity = report.get("parity")
    if parity is None:
        return ""
    what = "scores and boxes" if report.get("task") == "detection" else "probabilities"
    said = (
        f"{what} differ by at most {parity['max_difference']:.1e} on {parity['frames']} "
        f"calibration frames; {parity['tolerance']:.0e} is allowed"
    )
    # Reports of earlier versions know no rounding.
    if (rounding := parity.get("rounding")) is None:
        return said
    return f"{said}, since rounding every weight once more changes them by {rounding:.0e}"


def _recalibration(outcome: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return ""
    if not outcome["frames"]:
        return f"those of training, not measured anew: {outcome['reason']}"
    # Reports of earlier versions know no windows.
    window_px = outcome.get("window_px")
    part = "" if window_px is None else f"{window_px[1]}x{window_px[0]} px of each of "
    before, after = outcome["calibration_dice_before"], outcome["calibration_dice_after"]
    dice = f"from {before:.3f} to {after:.3f}"
    measured = f"measured anew on {part}{outcome['frames']} training frames"
    if outcome["kept"]:
        return f"{measured}: calibration Dice went {dice}"
    return f"those of training: {measured}, calibration Dice would have gone {dice}"


def _layers(norm: Mapping[str, Any]) -> str:
    if "converted" not in norm:
        return ""
    return f"{len(norm['converted'])}; {len(norm['left'])} left as they were"


def _resolution(resolution: float | None) -> str:
    if resolution is None:
        return ""
    return (
        f"{100 * resolution:.1f} % of the distance to the nearer of 0 and 1; what it leaves open "
        "is given beside each figure"
    )


def _seconds(seconds: Mapping[str, float] | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds['model']:.1f} s for the model, {seconds['counting']:.1f} s for counting; each "
        "frame was looked at once"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
