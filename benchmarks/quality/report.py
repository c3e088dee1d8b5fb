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
    sections += [
        "\n".join(_set_section(name, entries, profile)) for name in SETS if name in present
    ]
    sections.append("\n".join(_not_run(entries, profile)))
    return "\n\n".join(sections) + "\n"


def estimate_text(wanted: Sequence[Run], done: Entries, processes: int = 1) -> str:
    """Return how many runs are left and how long they will take by those that are done.

    So many are made at once.  A run is taken to cost the mean of the finished runs most like it: of
    its cell's set and resolution, of its set, or of all.
    """
    missing = [run for run in wanted if run not in done]
    count = f"{len(wanted) - len(missing)} of {len(wanted)} runs are done"
    if not missing:
        return f"{count}."
    if not done:
        return f"{count}; how long the rest takes can be told when one is."
    left_s = sum(_expected_s(run, done) for run in missing) / processes
    total_s = left_s + sum(done[run]["total_s"] for run in wanted if run in done) / processes
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
    return [
        "# Quality on real images" + (", at native size" if profile.counts_native else ""),
        "",
        "Models that the product trains on real sets, as a user trains them: a frozen version, a",
        "run directory, `python -m training`. Each set is split by part into 70 % of the frames to",
        "train on, 15 % for calibration and 15 % for the test; thresholds are chosen on the",
        "calibration frames, and the test frames are judged once, whole and at native size,",
        f"whatever the training saw. Runs are at batch {BATCH_SIZE} in {PRECISION}, from random",
        f"weights ({profile.model['encoder']}; on sets of boxes",
        f"{_detector(profile)}), and see far less than a model needs to reach its",
        "best. Read differences, not levels.",
        "",
        *_budget(profile),
        "Times are of a run that shares the machine with others and with whatever else ran, from",
        "the loading of its libraries to its report.",
        "",
        f"Written by `python -m benchmarks.quality{_option(profile)}`, which goes on where it was",
        "stopped.",
        *_machines(contents),
    ]


def _detector(profile: Profile) -> str:
    channels = profile.detector.get("detection", {}).get("pyramid_channels")
    width = "" if channels is None else f" with a pyramid of {channels} channels"
    return f"{profile.detector['architecture']}{width}"


def _option(profile: Profile) -> str:
    return " --profile native" if profile.counts_native else ""


def _budget(profile: Profile) -> list[str]:
    sizes = (
        f"`half` and `quarter` are whole frames with sides of a half and a quarter under "
        f"`{RESOLUTION_NORM}`, the product's choice at this batch."
    )
    budgets = ", ".join(f"{name} {budget:g}" for name, budget in profile.megapixels.items())
    if profile.counts_native:
        return [
            "Runs on a set take the same steps on the same frames, whatever becomes of them.",
            f"Megapixels of frames as they lie on disk: {budgets}.",
            f"`native` are whole frames; {sizes}",
        ]
    return [
        f"Every run shows the network so many megapixels: {budgets}. `crops` are windows of",
        f"448x448 native pixels; {sizes}",
    ]


def _machines(contents: Mapping[str, Any]) -> list[str]:
    if not contents["machines"]:
        return []
    lines = []
    for number, machine in enumerate(contents["machines"]):
        line = (
            f"- machine {number}: {machine['processor']}, {machine['cores']} cores, on "
            f"{machine['device']}, torch {machine['torch']}"
        )
        if machine.get("processes", 1) > 1:
            line += f"; {machine['processes']} runs at once, {machine['threads_each']} threads each"
        took = [each for each in contents.get("took", []) if each["machine"] == number]
        if took:
            runs, seconds = (sum(each[name] for each in took) for name in ("runs", "seconds"))
            line += f"; {runs} runs took {seconds:.0f} s in all"
        lines.append(line)
    return ["", "Machines:", "", *lines]


def _set_section(name: str, entries: Entries, profile: Profile) -> list[str]:
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
        f"| norm, resolution | seeds | {heads} | {_unit(profile)} |",
        "|---" * (len(scores) + 3) + "|",
    ]
    for cell in sorted({run.cell for run in own}, key=_order):
        of_cell = [own[run] for run in sorted(own) if run.cell == cell]
        texts = [_spread([_value(entry["scores"][score]) for entry in of_cell]) for score in scores]
        took = _spread([_took(entry, profile) for entry in of_cell], "{:.1f}")
        lines.append(
            f"| {cell.norm}, {cell.resolution} | {len(of_cell)} | {' | '.join(texts)} | {took} |"
        )
    return [*lines, "", *_run_table(own, scores, profile)]


def _unit(profile: Profile) -> str:
    return "seconds" if profile.counts_native else "minutes"


def _took(entry: Mapping[str, Any], profile: Profile) -> float:
    """Return how long a run's program worked, in the page's unit."""
    return float(entry["total_s"]) / (1 if profile.counts_native else 60)


def _order(cell: Cell) -> tuple[int, int]:
    return [*RESOLUTIONS].index(cell.resolution), NORMS.index(cell.norm)


def _run_table(own: Entries, scores: Sequence[str], profile: Profile) -> list[str]:
    """Return every run with its exact intervals; frames are the same, so seeds are not pooled."""
    rates = [score for score in scores if score not in ("dice", "ap50")]
    # A detector ships the statistics of training.
    told = ["recalibrated on"] if "dice" in scores else []
    columns = [*(_SCORES[score] for score in scores), *told, "steps", _unit(profile), "machine"]
    lines = [
        "Each run, rates with their exact 95 % intervals:",
        "",
        f"| run | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for run in sorted(own, key=lambda run: (_order(run.cell), run.seed)):
        entry = own[run]
        texts = [
            _rate_text(entry["scores"][score])
            if score in rates
            else _number(_value(entry["scores"][score]))
            for score in scores
        ]
        texts += [_recalibrated(entry) for _ in told]
        lines.append(
            f"| {run.cell.norm}, {run.cell.resolution}, seed {run.seed} | {' | '.join(texts)} | "
            f"{entry['steps']} | {_took(entry, profile):.1f} | {entry['machine']} |"
        )
    if told and any("recalibration" not in entry for entry in own.values()):
        lines += ["", _BEFORE_WINDOWS]
    return lines


_BEFORE_WINDOWS = (
    "`?`: not noted; measured when no run was recalibrated on windows, and a short one on windows "
    "on nothing."
)


def _recalibrated(entry: Mapping[str, Any]) -> str:
    """Return what a run's statistics were measured on anew, and whether they were kept."""
    if "recalibration" not in entry:
        return "?"
    outcome = entry["recalibration"]
    if not outcome["frames"]:
        return "nothing"
    what = "frames" if outcome["window_px"] is None else "windows"
    return f"{outcome['frames']} {what}" + ("" if outcome["kept"] else ", not kept")


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


def _not_run(entries: Entries, profile: Profile) -> list[str]:
    """Say what of the default plan has no run."""
    lines = ["## Not run", ""]
    cells = plan_cells(list(SETS), NORMS, profile)
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
