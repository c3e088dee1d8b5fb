"""What the runs say: scores of the chosen learning rates, and differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.norm.protocol import (
    CHOOSING_SEEDS,
    SETS,
    Cell,
    Run,
    choosing_seeds,
    chosen_rate,
    edge_mark,
    tried_rates,
)

Verdict = Literal["better", "worse", "no difference", "one seed, no verdict"]
Entries = Mapping[Run, Mapping[str, Any]]


@dataclass(frozen=True)
class CellScores:
    """The runs of a cell at its chosen learning rate.

    Attributes:
        by_seed: Test scores.
        rate: The chosen base rate.
        diverged: How many of the runs diverged; each scores 0.
        edge: Where the rate is the smallest or largest that was tried, an arrow that way, else "".
        is_provisional: Whether the rate was chosen by fewer seeds than the rule asks for.
    """

    by_seed: Mapping[int, float]
    rate: float
    diverged: int
    edge: str
    is_provisional: bool


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which one value does not have."""

    mean: float
    standard_error: float | None


@dataclass(frozen=True)
class Comparison:
    """A difference of means over the seeds both methods have."""

    difference: Estimate
    seeds: int
    verdict: Verdict


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and the standard error of the mean (sample deviation over root n)."""
    count = len(values)
    mean = sum(values) / count
    if count == 1:
        return Estimate(mean, None)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count))


def cell_scores(cell: Cell, entries: Entries, score: str = "test_ap") -> CellScores | None:
    """Return the scores of a cell at its chosen rate, or None while the choice is not made.

    Args:
        cell: The cell; one whose batch is a whole optimizer step is the same with accumulation and
            without, and stands for both.
        entries: The results.
        score: Which score of an entry; runs that do not have it are left out.
    """
    if cell.accumulate and cell.batch >= SETS[cell.set_name].images_per_step:
        cell = Cell(cell.set_name, cell.method, cell.batch, accumulate=False)
    runs = [run for run in entries if run.cell == cell]
    validation = {run: entries[run]["val_ap"] for run in runs}
    rate = chosen_rate(cell, validation)
    if rate is None:
        return None
    chosen = [
        run for run in sorted(runs) if run.base_lr == rate and entries[run][score] is not None
    ]
    if not chosen:
        return None
    return CellScores(
        {run.seed: entries[run][score] for run in chosen},
        rate,
        sum(entries[run]["diverged"] for run in chosen),
        edge_mark(rate, tried_rates(cell, validation)),
        len(choosing_seeds(cell, validation)) < CHOOSING_SEEDS,
    )


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Comparison | None:
    """Compare two methods over the seeds both have, or return None without such a seed.

    A difference within one standard error of the paired differences is no difference.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    difference = estimate([ours[seed] - theirs[seed] for seed in seeds])
    return Comparison(difference, len(seeds), verdict(difference))


def verdict(difference: Estimate) -> Verdict:
    """Return what a difference says."""
    if difference.standard_error is None:
        return "one seed, no verdict"
    if abs(difference.mean) <= difference.standard_error:
        return "no difference"
    return "better" if difference.mean > 0 else "worse"


def score_text(scores: CellScores, seeds: int) -> str:
    """Return a table's entry, with marks for how the rate was chosen, seeds and diverged runs."""
    value = estimate(list(scores.by_seed.values()))
    error = "" if value.standard_error is None else f" ± {value.standard_error:.3f}"
    text = f"{value.mean:.3f}{error}{scores.edge}{'¹' if scores.is_provisional else ''}"
    if len(scores.by_seed) < seeds:
        text += f" (n={len(scores.by_seed)})"
    if scores.diverged:
        text += f" ({scores.diverged} diverged)"
    return text


def columns(set_name: str) -> list[tuple[int, bool]]:
    """Return batch and accumulation of each column of a set's table."""
    spec = SETS[set_name]
    return [
        (batch, accumulate)
        for accumulate in (False, True)
        for batch in spec.batches
        if not (accumulate and batch >= spec.images_per_step)
    ]
