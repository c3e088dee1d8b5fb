"""What was found: defects by class and size, pixels, and what needs no training."""

from collections.abc import Mapping
from typing import Any

from training.report.axes import Axis, fitting_axis
from training.report.blocks import Block, Plot, Plots, RunRecord, Section, Sentences, Table
from training.report.plots import Series, draw_plot
from training.report.wording import say_rate

# More lines than these can't be told apart; tables name every class.
MOST_LINES = 8
# A model with more false alarms than this is of no use, whatever it finds.
MOST_FALSE_REGIONS = 4.0

Classes = Mapping[str, Mapping[str, Any]]


def defects(run: RunRecord) -> Section | None:
    """Return recall by class, by size and at fixed numbers of false regions."""
    regions = run.metrics.get("regions")
    classes: Classes = run.evaluation.get("classes", {})
    if regions is None:
        return None
    rows = [
        [
            name,
            say_rate(region["recall"]),
            number(region["false_per_frame"], 2),
            number(region.get("false_per_good_frame"), 2),
        ]
        for name, region in regions.items()
    ]
    table = Table(
        ("class", "labelled defects found", "false regions a frame", "on good frames"),
        rows,
        "A labelled defect is a connected region of a class's labelled pixels. It is found if a "
        "reported region of its class shares a pixel with it; a reported region that shares none "
        "is false.",
    )
    blocks: list[Block] = [table, *_plots_of_defects(classes), *_size_tables(classes)]
    return Section("Defects", [*blocks, *_free_response_table(classes)])


def _plots_of_defects(classes: Classes) -> list[Plots]:
    sized = {name: each for name, each in classes.items() if each.get("detection_by_short_side")}
    free = {name: each for name, each in classes.items() if each["free_response"]["curve"]}
    plots = []
    if sized:
        series = [_detection(name, each) for name, each in _most(sized).items()]
        sizes = [x for each in series for x, _ in each.points]
        drawing = draw_plot(
            series,
            fitting_axis("short side of the defect, px", sizes, is_log=True),
            Axis("defects found", is_percent=True),
            "probability of detection by size",
        )
        caption = (
            "Probability of detection against size, with exact 95 % intervals. Size is the short "
            "side of the least rectangle around the defect; each point stands for a stretch of "
            "sizes that holds about as many defects as the others."
        )
        plots.append(Plot(drawing, caption + _cut(sized)))
    if free:
        drawing = draw_plot(
            [_free_response(name, each) for name, each in _most(free).items()],
            Axis("false regions a good frame", 0.0, MOST_FALSE_REGIONS),
            Axis("defects located", is_percent=True),
            "defects located by false regions",
        )
        caption = (
            "Defects located against false regions a good frame (FROC) as the threshold moves. "
            "A defect is located by a region that touches it and is labelled for a tenth or more."
        )
        plots.append(Plot(drawing, caption + _cut(free)))
    return [Plots(plots)] if plots else []


def _detection(name: str, details: Mapping[str, Any]) -> Series:
    bins = details["detection_by_short_side"]
    middles = [(each["from_px"] * each["below_px"]) ** 0.5 for each in bins]
    rates = [each["recall"] for each in bins]
    return Series(
        name,
        [(x, rate["rate"]) for x, rate in zip(middles, rates, strict=True)],
        [(rate["low"], rate["high"]) for rate in rates],
        style="points",
    )


def _free_response(name: str, details: Mapping[str, Any]) -> Series:
    points = [
        (each["false_regions_a_good_frame"], each["recall"])
        for each in details["free_response"]["curve"]
    ]
    return Series(name, [(x, y) for x, y in points if x <= MOST_FALSE_REGIONS])


def _size_tables(classes: Classes) -> list[Table]:
    rows = []
    for name, details in classes.items():
        for key, what in (("recall_by_area", "area"), ("recall_by_short_side", "short side")):
            rows += [
                [
                    name,
                    what,
                    f"{size_px(each['from_px'])} to {size_px(each['below_px'])} px",
                    say_rate(each["recall"]),
                ]
                for each in details.get(key, ())
            ]
    caption = (
        "Sizes are parted at the quantiles of the labelled defects, 10 or more in each part; with "
        "fewer than 20 there is one part."
    )
    return [Table(("class", "size by", "from, to", "found"), rows, caption)] if rows else []


def _free_response_table(classes: Classes) -> list[Table | Sentences]:
    entries = {name: details["free_response"] for name, details in classes.items()}
    told = [(name, entry["at"]) for name, entry in entries.items() if entry["at"]]
    untold = [f"{name}: {entry['reason']}" for name, entry in entries.items() if entry["reason"]]
    blocks: list[Table | Sentences] = []
    if told:
        head = [f"{each['false_regions_a_good_frame']:g}" for each in told[0][1]]
        rows = [[name, *(_recall(each["recall"]) for each in at)] for name, at in told]
        caption = "Defects located at no more than this many false regions a good frame."
        blocks.append(Table(("class", *head), rows, caption))
    if untold:
        text = "Without defects and good frames there is no such curve: " + "; ".join(untold) + "."
        blocks.append(Sentences([text]))
    return blocks


def _recall(recall: Mapping[str, Any] | None) -> str:
    return "not reached" if recall is None else f"{recall['events']} of {recall['n']}"


def pixels(run: RunRecord) -> Section | None:
    """Return scores by pixel and frame, precision-recall curves, and the trivial baselines."""
    scores: Classes | None = run.metrics.get("pixels")
    if scores is None:
        return None
    details: dict[str, Mapping[str, Any]] = dict(run.evaluation.get("classes", {}))
    if "any" in run.evaluation:
        details = {"any class": run.evaluation["any"], **details}
    named = {("any class" if name == "any" else name): each for name, each in scores.items()}
    rows = [_pixel_row(name, each, details.get(name, {})) for name, each in named.items()]
    head = ("class", "Dice", "IoU", "average precision", "AUPRO to 0.3")
    caption = (
        "Dice and IoU at the chosen thresholds, over all test pixels; the others over all "
        "thresholds. In brackets what the resolution of the scores leaves open."
    )
    blocks: list[Block] = [Table(head, rows, caption), *_frame_table(details)]
    blocks += _precision_recall(details)
    return Section("Pixels and frames", [*blocks, *_baselines(run)])


def _pixel_row(name: str, scores: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    precision = details.get("pixel_average_precision", {})
    aupro = details.get("aupro", {})
    return [
        name,
        number(scores["dice"]),
        number(scores["iou"]),
        _bounded(precision.get("value"), precision.get("low"), precision.get("high")),
        number(aupro.get("value")) + _error(aupro.get("resolution_error")),
    ]


def _frame_table(details: Classes) -> list[Table]:
    rows = []
    for name, each in details.items():
        dice, precision = each["frame_dice"], each["frame_average_precision"]
        rows.append(
            [
                name,
                str(dice["n"]),
                number(dice["mean"]),
                number(dice["median"]),
                number(dice["worst"]),
                dice["worst_frame"] or "none",
                _bounded(precision["value"], precision["low"], precision["high"]),
            ]
        )
    head = ("class", "frames", "Dice, mean", "median", "worst", "worst frame", "average precision")
    caption = (
        "Frame by frame: Dice of the frames that show the class; average precision of the frame's "
        "highest probability, over all frames."
    )
    return [Table(head, rows, caption)] if rows else []


def _precision_recall(details: Classes) -> list[Plots]:
    plots = []
    for key, what in (("pixel_precision_recall", "pixels"), ("frame_precision_recall", "frames")):
        drawn = {name: each for name, each in details.items() if each.get(key)}
        # A single class is what "any class" is.
        drawn = {
            name: each for name, each in drawn.items() if len(drawn) != 2 or name != "any class"
        }
        if drawn:
            series = [
                Series(name, [(each["recall"], each["precision"]) for each in curve[key]])
                for name, curve in _most(drawn).items()
            ]
            axes = Axis("recall", is_percent=True), Axis("precision", is_percent=True)
            caption = f"Precision against recall by {what}."
            drawing = draw_plot(series, *axes, f"precision and recall of {what}")
            plots.append(Plot(drawing, caption + _cut(drawn)))
    return [Plots(plots)] if plots else []


def _baselines(run: RunRecord) -> list[Table]:
    baselines = run.report.get("baselines")
    if not baselines:
        return []
    brightness = baselines["brightness_threshold"]
    scores = run.metrics["pixels"]["any"]
    named: list[tuple[str, Mapping[str, Any]]] = [
        ("this model", scores),
        (f"a threshold on brightness ({brightness['direction']} is a defect)", brightness),
        ("everything is a defect", baselines["all_foreground"]),
        ("nothing is a defect", baselines["all_background"]),
    ]
    rows = [[name, number(each["dice"]), number(each["iou"])] for name, each in named]
    caption = (
        "A model must beat what needs no training. Nothing but OK lets every defect escape; "
        "nothing but NG rejects every good part."
    )
    return [Table(("any class", "Dice", "IoU"), rows, caption)]


def _most(classes: Classes) -> Classes:
    """Return the classes that are drawn: the first ones, where there are too many."""
    return dict(list(classes.items())[:MOST_LINES])


def _cut(classes: Classes) -> str:
    left_out = len(classes) - MOST_LINES
    return f" The other {left_out} classes are in the tables alone." if left_out > 0 else ""


def number(value: float | None, digits: int = 3) -> str:
    """Return a score, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash, not a minus.


def size_px(value: float) -> str:
    """Return a size without digits that nobody reads."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")


def _bounded(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return number(value)
    return number(value) if high - low < 0.001 else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _error(error: float | None) -> str:
    return f" (± {error:.3f})" if error is not None and error >= 0.001 else ""
