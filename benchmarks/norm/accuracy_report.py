"""Writes the accuracy benchmark's tables and plots from its results file."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.norm.accuracy_plot import MissingLibraryError, draw_set
from benchmarks.norm.accuracy_tables import (
    Comparison,
    Entries,
    cell_scores,
    columns,
    compare,
    score_text,
)
from benchmarks.norm.protocol import (
    BASE_RATES,
    CHOOSING_SEEDS,
    DEFAULT_METHODS,
    DESCRIPTIONS,
    METHODS,
    RATE_GRID,
    SETS,
    Cell,
)
from benchmarks.norm.results import ResultsFile, StaleResultsError

RIVALS = ("bn", "gn", "brn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/norm-accuracy.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/norm-accuracy.md"))
    parser.add_argument(
        "--default", choices=list(METHODS), default="cbn", help="compared with the others"
    )
    parser.add_argument("--no-plots", action="store_true", help="tables alone")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and return the exit status."""
    results = ResultsFile(arguments.results)
    try:
        entries = results.runs()
    except StaleResultsError as error:
        print(error, file=sys.stderr)
        return 2
    if not entries:
        print(
            f"{arguments.results} holds no runs; make some with `python -m benchmarks.norm "
            "accuracy` or name the file with --results",
            file=sys.stderr,
        )
        return 2
    plots: dict[str, Path] = {}
    # Of a set whose learning rates are not chosen yet there is nothing to draw.
    sets = [
        name
        for name in SETS
        if any(run.cell.set_name == name and cell_scores(run.cell, entries) for run in entries)
    ]
    if not arguments.no_plots:
        try:
            plots = _draw(sets, entries, arguments.out)
        except MissingLibraryError as error:
            print(error, file=sys.stderr)
            return 2
    text = report(entries, results.read(), arguments.default, plots)
    arguments.out.write_text(text)
    print(f"wrote {', '.join(str(path) for path in (arguments.out, *plots.values()))}")
    return 0


def _draw(sets: Sequence[str], entries: Entries, out: Path) -> dict[str, Path]:
    plots = {name: out.with_name(f"{out.stem}-{name}.png") for name in sets}
    for name, path in plots.items():
        # With the ablations as well nobody could tell the lines apart.
        shown = [method for method in methods_of(name, entries) if not METHODS[method].on_request]
        draw_set(name, shown, entries, path)
    return plots


def methods_of(set_name: str, entries: Entries) -> list[str]:
    """Return the methods with a run on a set, in the protocol's order."""
    present = {run.cell.method for run in entries if run.cell.set_name == set_name}
    return [method for method in METHODS if method in present]


def report(entries: Entries, contents: dict[str, Any], default: str, plots: dict[str, Path]) -> str:
    """Return the whole report in Markdown."""
    sections = [_introduction(contents), "\n".join(_legend(entries))]
    for name in SETS:
        methods = methods_of(name, entries)
        if not methods:
            continue
        section = [f"## {name}", "", *_conditions(name), ""]
        section += score_table(name, methods, entries, "test_ap")
        if name in plots:
            section += ["", f"![score over batch size]({plots[name].name})"]
        again = [
            method
            for method in methods
            if any(
                run.cell.set_name == name
                and run.cell.method == method
                and entry["test_ap_recalibrated"] is not None
                for run, entry in entries.items()
            )
        ]
        if again:
            recalibrated = score_table(name, again, entries, "test_ap_recalibrated")
            section += ["", "With statistics recalibrated on training images:", "", *recalibrated]
        sections.append("\n".join(section))
    sections.append("\n".join(comparison_section(default, entries)))
    sections.append("\n".join(_not_run(entries, contents)))
    return "\n\n".join(sections) + "\n"


def _introduction(contents: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:g}" for rate in BASE_RATES)
    machines = [
        f"- {machine['processor']}, {machine['cores']} cores, on {machine['device']}, torch "
        f"{machine['torch']}, {machine['threads_per_run']} thread a run"
        for machine in contents["machines"]
    ]
    commands = [f"    {command}" for command in contents["commands"]]
    return "\n".join(
        [
            "# Accuracy of the normalizations",
            "",
            "Test pixel average precision, mean ± standard error over seeds. The learning rate is",
            f"base · √(images of an optimizer step); the base, out of {rates}, is the one",
            f"with the best mean validation score over seeds 0 to {CHOOSING_SEEDS - 1}, for every",
            "cell alike. Where that is the smallest or the largest of them,",
            f"{RATE_GRID[0]:g} or {RATE_GRID[-1]:g} is tried as well. ↑ and ↓ mark a choice at an",
            "edge of what was tried, where a better rate may lie beyond; ¹ marks a rate chosen by",
            "seed 0 alone. A run that diverged scores 0.",
            "",
            "Made by these invocations, which add up (some were cut short), and drawn by",
            "`python -m benchmarks.norm accuracy-report`:",
            "",
            *commands,
            "",
            "Machine:",
            "",
            *machines,
        ]
    )


def _legend(entries: Entries) -> list[str]:
    present = {run.cell.method for run in entries}
    rows = [f"| {name} | {DESCRIPTIONS[name]} |" for name in METHODS if name in present]
    return ["| method | what it is |", "|---|---|", *rows]


def _conditions(set_name: str) -> list[str]:
    spec = SETS[set_name]
    what = "Patches of 64x64 px" if spec.patches else "Whole frames at native size"
    return [
        f"{what}; {spec.images} images a run; with accumulation {spec.images_per_step} images",
        "an optimizer step, without it a step on every batch.",
    ]


def score_table(set_name: str, methods: Sequence[str], entries: Entries, score: str) -> list[str]:
    """Return a set's table: rows methods, columns batch and accumulation."""
    places = columns(set_name)
    heads = [f"{batch}{', accumulated' if accumulate else ''}" for batch, accumulate in places]
    cells = {
        (method, *place): cell_scores(Cell(set_name, method, *place), entries, score)
        for method in methods
        for place in places
    }
    seeds = max((len(found.by_seed) for found in cells.values() if found), default=1)
    lines = [f"| batch | {' | '.join(heads)} |", "|---" * (len(places) + 1) + "|"]
    for method in methods:
        found = [cells[method, *place] for place in places]
        texts = [score_text(scores, seeds) if scores else "-" for scores in found]
        lines.append(f"| {method} | {' | '.join(texts)} |")
    return lines


def comparison_section(default: str, entries: Entries) -> list[str]:
    """Return the table that sets one method against its rivals, cell by cell."""
    rivals = [rival for rival in RIVALS if rival != default]
    lines = [
        f"## {default} against {', '.join(rivals)}",
        "",
        "Difference of test scores, paired by seed, ± the standard error of the paired",
        "difference. Within one standard error is no difference; with this few seeds one beyond it",
        "also comes up by chance, in about a third of comparisons or more.",
        "",
        f"| set | batch | accumulated | {' | '.join(f'against {rival}' for rival in rivals)} |",
        "|---" * (3 + len(rivals)) + "|",
    ]
    found: dict[str, list[tuple[bool, Comparison]]] = {rival: [] for rival in rivals}
    rows = list(_comparison_rows(default, rivals, entries, found))
    if not rows:
        return [*lines[:2], f"{default} has no cell with a chosen learning rate yet."]
    lines += [*rows, ""]
    for rival, comparisons in found.items():
        alone = [comparison for is_alone, comparison in comparisons if is_alone]
        others = [comparison for is_alone, comparison in comparisons if not is_alone]
        lines += [
            _summary(f"Against {rival}", alone + others),
            "  " + _summary("At batch 1 with a step on every image", alone),
            "  " + _summary("At larger batches or with accumulation", others),
        ]
    return lines


def _summary(what: str, comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return f"- {what}: nothing to compare."
    tally = Counter(comparison.verdict for comparison in comparisons)
    told = ", ".join(f"{outcome} in {count}" for outcome, count in sorted(tally.items()))
    mean = sum(comparison.difference.mean for comparison in comparisons) / len(comparisons)
    return f"- {what}: {told}; {mean:+.3f} on average."


def _comparison_rows(
    default: str,
    rivals: Sequence[str],
    entries: Entries,
    comparisons: dict[str, list[tuple[bool, Comparison]]],
) -> Iterator[str]:
    """Yield the table's rows, and add what they say, and whether at batch 1 with a step on each."""
    for set_name in SETS:
        for batch, accumulate in columns(set_name):
            ours = cell_scores(Cell(set_name, default, batch, accumulate), entries)
            if ours is None:
                continue
            texts = []
            for rival in rivals:
                theirs = cell_scores(Cell(set_name, rival, batch, accumulate), entries)
                found = compare(ours.by_seed, theirs.by_seed) if theirs else None
                if found is None:
                    texts.append("-")
                    continue
                comparisons[rival].append((batch == 1 and not accumulate, found))
                error = found.difference.standard_error
                spread = "" if error is None else f" ± {error:.3f}"
                texts.append(f"{found.difference.mean:+.3f}{spread}, {found.verdict}")
            accumulated = "yes" if accumulate else "no"
            yield f"| {set_name} | {batch} | {accumulated} | {' | '.join(texts)} |"


def _not_run(entries: Entries, contents: dict[str, Any]) -> list[str]:
    """Say what of the default plan has no score."""
    lines = ["## Not run", ""]
    lines += [f"- {name}: {reason}" for name, reason in contents["left_out"].items()]
    for set_name in SETS:
        missing = {
            method: [
                f"{batch}{' accumulated' if accumulate else ''}"
                for batch, accumulate in columns(set_name)
                if cell_scores(Cell(set_name, method, batch, accumulate), entries) is None
            ]
            for method in DEFAULT_METHODS
        }
        whole = [name for name, places in missing.items() if len(places) == len(columns(set_name))]
        if len(whole) == len(DEFAULT_METHODS):
            lines.append(f"- {set_name}: everything.")
            continue
        if whole:
            lines.append(f"- {set_name}: {', '.join(whole)}.")
        lines += [
            f"- {set_name}, {method}: batch {', '.join(places)}."
            for method, places in missing.items()
            if places and method not in whole
        ]
    return lines if len(lines) > 2 else [*lines, "Nothing of the default plan is missing."]
