"""What a comparison comes to, in sentences that claim no more than the numbers do."""

from collections.abc import Iterator, Mapping, Sequence

from service.comparisons.resources import ArmResult, Measure, PairResource
from service.comparisons.spec import Equal

_EQUAL: dict[Equal, str] = {
    "passes": "Equal are the passes: every arm showed each frame equally often, a tiled pass as "
    "many windows as cover a frame. Time was not equal; it was measured.",
    "steps": "Equal are the optimizer steps, each of as many frames or windows; a resized frame "
    "and a window hold fewer pixels. Time was not equal; it was measured.",
    "minutes": "Equal are the minutes of training; how many passes each arm made is stated.",
}
_NAMES: dict[Measure, tuple[str, str]] = {
    "escape": ("lets more defective frames escape", "lets fewer defective frames escape"),
    "overkill": ("rejects more good frames", "rejects fewer good frames"),
    "defects": ("finds more defects", "finds fewer defects"),
    "dice": ("covers defects better (pixel Dice)", "covers defects worse (pixel Dice)"),
}
MEASURES: dict[Measure, str] = {
    "escape": "escapes",
    "overkill": "overkill",
    "defects": "defects found",
    "dice": "pixel Dice",
}
_COUNTED: dict[Measure, str] = {
    "escape": "defective frames",
    "overkill": "good frames",
    "defects": "defects",
    "dice": "frames",
}
_JUDGED = (
    "Every arm is judged on the same native test frames and labels; each chose its thresholds on "
    "the calibration frames. The size of a defect is its short side."
)
_COUNTS_TEST = "counts by an exact sign test"
_DICE_TEST = ", Dice by swapping units at random"
_INTERVALS = "; intervals by drawing units with replacement, rough where they are few."
_BOXES = (
    "A defect counts as found where a reported box of its class overlaps the labelled one by half "
    "or more, intersection over union."
)
# A larger number is worse of these.
_ERRORS: frozenset[Measure] = frozenset({"escape", "overkill"})


def findings(
    results: Mapping[str, ArmResult], pairs: Sequence[PairResource], reference: str
) -> list[str]:
    """Return the answer first, then the counts by size, each difference, and what it costs."""
    others = [name for name in results if name != reference]
    if reference not in results or not others:
        return []
    return [
        *(_answer(name, reference, pairs) for name in others),
        *_counts_by_size(results, reference),
        *(_difference(pair) for pair in pairs if pair.is_shown),
        *(_cost(name, results[name], reference, results[reference]) for name in others),
    ]


def notes(
    equal: Equal, results: Mapping[str, ArmResult], pairs: Sequence[PairResource], *, grouped: bool
) -> list[str]:
    """Return how it was compared and what limits it."""
    others = len(results) - 1
    has_boxes = any(result.ap50 is not None for result in results.values())
    tests = _COUNTS_TEST if has_boxes else _COUNTS_TEST + _DICE_TEST
    told = [
        _EQUAL[equal],
        _JUDGED,
        f"Paired by {'part, lot or specimen' if grouped else 'frame'}: {tests}{_INTERVALS}",
    ]
    if has_boxes:
        told.append(_BOXES)
    if others > 0:
        limit = 0.05 / others
        told.append(
            f"A difference is called one if chance would make it less often than in {limit:.3g}: "
            f"5 % over {others} compared arm{'s' if others > 1 else ''}. Measures are not "
            "corrected for their number, and one seed is one training: repeat with another before "
            "much money depends on it."
        )
    if any(result.training.shown == "windows" for result in results.values()):
        told.append(
            "What the tiled arm shows a second are windows: compare megapixels, not frames."
        )
    batches = {
        name: f"{name} {each.training.batch_size} x {each.training.accumulation_steps}"
        for name, each in results.items()
    }
    if len({text.partition(" ")[2] for text in batches.values()}) > 1:
        told.append(
            "Memory was short: steps are of other batches, and normalization saw others "
            f"({', '.join(batches.values())})."
        )
    since = [name for name, each in results.items() if each.peak_memory_since != "start"]
    if since:
        told.append(f"Peak memory since their last resume only: {', '.join(since)}.")
    if len({str(sorted(each.machine.items())) for each in results.values()}) > 1:
        told.append("The arms ran on different machines or settings: times do not compare.")
    if not pairs:
        told.append("Nothing is compared yet: the reference and another arm have to succeed first.")
    return told


def size_text(from_px: float | None, below_px: float | None) -> str:
    """Return a range of short sides in words, empty for all sizes."""
    if from_px is None and below_px is None:
        return ""
    if from_px is None:
        return f"under {below_px:g} px"
    if below_px is None:
        return f"of {from_px:g} px and more"
    return f"of {from_px:g} to under {below_px:g} px"


def _answer(name: str, reference: str, pairs: Sequence[PairResource]) -> str:
    own = [pair for pair in pairs if pair.arm == name]
    worse = [pair for pair in own if pair.is_shown and _is_worse(pair)]
    better = [pair for pair in own if pair.is_shown and not _is_worse(pair)]
    if not worse and not better:
        n = {pair.measure: pair.n for pair in own if pair.from_px is None and pair.below_px is None}
        return (
            f"No difference between {name} and {reference} can be shown with n = "
            f"{n['defects']} defects in {n['escape']} defective and {n['overkill']} good frames."
        )
    sides = [f"worse in {_list(worse)}"] if worse else []
    sides += [f"better in {_list(better)}"] if better else []
    return f"{name} is {' and '.join(sides)} than {reference}."


def _is_worse(pair: PairResource) -> bool:
    return ((pair.difference or 0.0) > 0) == (pair.measure in _ERRORS)


def _list(pairs: Sequence[PairResource]) -> str:
    return ", ".join(
        " ".join(filter(None, (MEASURES[pair.measure], size_text(pair.from_px, pair.below_px))))
        for pair in pairs
    )


def _counts_by_size(results: Mapping[str, ArmResult], reference: str) -> Iterator[str]:
    order = [reference, *(name for name in results if name != reference)]
    for index, size in enumerate(results[reference].recall_by_size):
        where = " ".join(filter(None, ("defects", size_text(size.from_px, size.below_px))))
        first, *rest = [(name, results[name].recall_by_size[index].recall) for name in order]
        told = [f"{first[0]} finds {first[1].events} of {first[1].n} {where}"]
        told += [f"{name} {recall.events} of {recall.n}" for name, recall in rest]
        yield ", ".join(told) + "."


def _difference(pair: PairResource) -> str:
    more, fewer = _NAMES[pair.measure]
    difference = pair.difference or 0.0
    size = size_text(pair.from_px, pair.below_px)
    interval = (
        "no interval"
        if pair.low is None or pair.high is None
        else f"95 % interval {pair.low:+.2f} to {pair.high:+.2f}"
    )
    what = " ".join(filter(None, (more if difference > 0 else fewer, size)))
    return (
        f"{pair.arm} {what} than {pair.reference}: {difference:+.2f} ({interval}, "
        f"p = {pair.p:.2g}, {pair.n} {_COUNTED[pair.measure]} in {pair.units} units)."
    )


def _cost(name: str, arm: ArmResult, reference: str, whole: ArmResult) -> str:
    shown = arm.training.seconds / max(whole.training.seconds, 1e-9)
    told = [f"training took {shown:.2f} of {reference}'s time"]
    if arm.predicted_frames_per_s and whole.predicted_frames_per_s:
        pace = arm.predicted_frames_per_s / whole.predicted_frames_per_s
        told.append(f"it judged {pace:.1f} times as many frames a second")
    share = arm.peak_memory_bytes / max(whole.peak_memory_bytes, 1)
    told.append(f"its peak memory was {share:.2f} of {reference}'s")
    return f"{name}: {', '.join(told)}."
