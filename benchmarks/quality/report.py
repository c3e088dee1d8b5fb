"""The page of the quality benchmark, and how long the rest of it will take."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.quality.protocol import (
    BATCH_SIZE,
    NORMS,
    PRECISION,
    RESOLUTION_NORM,
    RESOLUTIONS,
    SEEDS,
    SETS,
    Cell,
    Profile,
    Run,
    plan_cells,
)

Entries = Mapping[Run, Mapping[str, Any]]

_SCORES = {
    "dice": "test Dice",
    "ap50": "test AP50",
    "defects_found": "defects found",
    "small_defects_found": "smallest third found",
    "escape": "escapes",
    "overkill": "overkill",
}


def report(entries: Entries, contents: Mapping[str, Any], profile: Profile) -> str:
    """Return the page in Markdown."""
    sections = ["\n".join(_introduction(contents, profile))]
    present = {run.cell.set_name for run in entries}
    sections += ["\n".join(_set_section(name, entries)) for name in SETS if name in present]
    sections.append("\n".join(_not_run(entries)))
    return "\n\n".join(sections) + "\n"


def estimate_text(wanted: Sequence[Run], done: Entries) -> str:
    """Return how many runs are left and how long they will take by those that are done.

    A run is taken to cost the mean of the finished runs most like it: of its cell's set and
    resolution, of its set, or of all.
    """
    missing = [run for run in wanted if run not in done]
    count = f"{len(wanted) - len(missing)} of {len(wanted)} runs are done"
    if not missing:
        return f"{count}."
    if not done:
        return f"{count}; how long the rest takes can be told when one is."
    left_s = sum(_expected_s(run, done) for run in missing)
    total_s = left_s + sum(done[run]["total_s"] for run in wanted if run in done)
    return (
        f"{count}; the rest takes about {_duration(left_s)} and the whole about "
        f"{_duration(total_s)}, by the {len(done)} finished."
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _expected_s(run: Run, done: Entries) -> float:
    cell = run.cell
    likeness = (
        [each for each in done if _place(each.cell) == _place(cell)],
        [each for each in done if each.cell.set_name == cell.set_name],
        [*done],
    )
    like = next(alike for alike in likeness if alike)
    return float(sum(done[each]["total_s"] for each in like) / len(like))


def _place(cell: Cell) -> tuple[str, str]:
    return cell.set_name, cell.resolution


def _introduction(contents: Mapping[str, Any], profile: Profile) -> list[str]:
    machines = [
        f"- machine {number}: {machine['processor']}, {machine['cores']} cores, on "
        f"{machine['device']}, torch {machine['torch']}"
        for number, machine in enumerate(contents["machines"])
    ]
    return [
        "# Quality on real images",
        "",
        "Models that the product trains on real sets, as a user trains them: a frozen version, a",
        "run directory, `python -m training`. Each set is split by part into 70 % of the frames to",
        "train on, 15 % for calibration and 15 % for the test; thresholds are chosen on the",
        "calibration frames, and the test frames are judged once, whole and at native size,",
        "whatever the training saw. Every run shows the network",
        f"{profile.megapixels:g} megapixels at batch {BATCH_SIZE} in {PRECISION}, from random",
        f"weights ({profile.model['encoder']}; on sets of boxes",
        f"{profile.detector['architecture']}): about",
        "the same work each, and far less than a model needs to reach its best. Read differences,",
        "not levels.",
        "",
        "`crops` are windows of 448x448 native pixels, `half` and `quarter` whole frames with",
        f"sides of a half and a quarter under `{RESOLUTION_NORM}`, the product's choice at this",
        "batch.",
        "",
        "Written by `make benchmark-quality`, which goes on where it was stopped.",
        *(["", "Machines:", "", *machines] if machines else []),
    ]


def _set_section(name: str, entries: Entries) -> list[str]:
    own = {run: entry for run, entry in entries.items() if run.cell.set_name == name}
    scores = [score for score in _SCORES if score in next(iter(own.values()))["scores"]]
    frames = next(iter(own.values()))["test_frames"]
    trivial = max(entry["best_trivial"] for entry in own.values())
    heads = " | ".join(_SCORES[score] for score in scores)
    lines = [
        f"## {name}",
        "",
        f"{frames} test frames, the same for every run. The best answer that needs no training",
        f"reaches {_SCORES[scores[0]]} {trivial:.3f}. Mean ± standard deviation over seeds.",
        "",
        f"| norm, resolution | seeds | {heads} | minutes |",
        "|---" * (len(scores) + 3) + "|",
    ]
    for cell in sorted({run.cell for run in own}, key=_order):
        of_cell = [own[run] for run in sorted(own) if run.cell == cell]
        texts = [_spread([_value(entry["scores"][score]) for entry in of_cell]) for score in scores]
        minutes = _spread([entry["total_s"] / 60 for entry in of_cell], "{:.1f}")
        lines.append(
            f"| {cell.norm}, {cell.resolution} | {len(of_cell)} | {' | '.join(texts)} | {minutes} |"
        )
    return [*lines, "", *_run_table(own, scores)]


def _order(cell: Cell) -> tuple[int, int]:
    return [*RESOLUTIONS].index(cell.resolution), NORMS.index(cell.norm)


def _run_table(own: Entries, scores: Sequence[str]) -> list[str]:
    """Return every run with its exact intervals; frames are the same, so seeds are not pooled."""
    rates = [score for score in scores if score not in ("dice", "ap50")]
    lines = [
        "Each run, rates with their exact 95 % intervals:",
        "",
        f"| run | {' | '.join(_SCORES[score] for score in scores)} | steps | minutes | machine |",
        "|---" * (len(scores) + 4) + "|",
    ]
    for run in sorted(own, key=lambda run: (_order(run.cell), run.seed)):
        entry = own[run]
        texts = [
            _rate_text(entry["scores"][score])
            if score in rates
            else _number(_value(entry["scores"][score]))
            for score in scores
        ]
        lines.append(
            f"| {run.cell.norm}, {run.cell.resolution}, seed {run.seed} | {' | '.join(texts)} | "
            f"{entry['steps']} | {entry['total_s'] / 60:.1f} | {entry['machine']} |"
        )
    return lines


def _value(score: Any) -> float | None:
    """Return a score as a number: itself, or a rate's."""
    value = score["rate"] if isinstance(score, Mapping) else score
    return None if value is None else float(value)


def _rate_text(score: Any) -> str:
    if not isinstance(score, Mapping):
        return _number(score)
    if score["rate"] is None:
        return "none to judge by"
    return f"{score['events']}/{score['n']} ({score['low']:.2f} to {score['high']:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(values: Iterable[float | None], form: str = "{:.3f}") -> str:
    """Return mean and sample deviation of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return form.format(mean)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return f"{form.format(mean)} ± {form.format(deviation)}"


def _not_run(entries: Entries) -> list[str]:
    """Say what of the default plan has no run."""
    lines = ["## Not run", ""]
    cells = plan_cells(list(SETS), NORMS)
    for name in dict.fromkeys(cell.set_name for cell in cells):
        missing = {
            cell: [str(seed) for seed in range(SEEDS) if Run(cell, seed) not in entries]
            for cell in cells
            if cell.set_name == name
        }
        if all(len(seeds) == SEEDS for seeds in missing.values()):
            lines.append(f"- {name}: everything.")
            continue
        lines += [
            f"- {name}, {cell.norm}, {cell.resolution}: seeds {', '.join(seeds)}."
            for cell, seeds in missing.items()
            if seeds
        ]
    return lines if len(lines) > 2 else [*lines, "Nothing of the plan is missing."]
