"""What is compared, on how many images, at which learning rates: the rules, without any training.

A run trains one network.  A cell is a set of images, a method, a batch size and whether gradients
are accumulated; its runs differ in seed and learning rate.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from norm.conversion import Kind

# Raise it with every change of the training, the network, the images or the score.
PROTOCOL_VERSION = 1
BASE_RATES = (2.5e-4, 1e-3, 4e-3)
# Where the best of these is the smallest or the largest, the one beyond it is tried as well.
RATE_GRID = (6.25e-5, *BASE_RATES, 1.6e-2)
WEIGHT_DECAY = 1e-4
WARMUP_SHARE = 0.05
DEFAULT_SEEDS = 3
# One seed's validation score picks rates that other seeds do badly with.
CHOOSING_SEEDS = 3
BATCHES = (1, 2, 4, 16)


@dataclass(frozen=True)
class SetSpec:
    """One set of images and the length of a run on it.

    Attributes:
        source: Folder of the data set.
        patches: Whether it is cut into patches; frames are whole otherwise.
        channels: Of the network's input.
        images: Images a run sees, the same for every cell.
        images_per_step: Images of an optimizer step under accumulation.
        batches: Batch sizes that are run.
    """

    source: str
    patches: bool
    channels: int
    images: int
    images_per_step: int
    batches: tuple[int, ...]


def _patches(source: str, channels: int) -> SetSpec:
    return SetSpec(source, True, channels, 1024, 16, BATCHES)


def _frames(source: str, channels: int, images: int, images_per_step: int) -> SetSpec:
    # A CPU core takes most of a minute for 96 frames of two megapixels.  Sixteen of them an
    # optimizer step would leave six steps, which learn nothing.
    return SetSpec(source, False, channels, images, images_per_step, (1, 2))


SETS: Mapping[str, SetSpec] = {
    "weld_patches": _patches("weld_seg", 3),
    "bsdata_patches": _patches("bsdata", 3),
    "deeppcb_patches": _patches("deeppcb", 2),
    "hripcb_patches": _patches("hripcb", 3),
    "weld_frames": _frames("weld_seg", 3, 96, 4),
    "bsdata_frames": _frames("bsdata", 3, 96, 4),
    "deeppcb_frames": _frames("deeppcb", 2, 128, 16),
}


@dataclass(frozen=True)
class Method:
    """One normalization.

    Attributes:
        kind: As `norm.convert_batchnorm` takes it.
        options: Its options; `total_steps` of "brn" is the run's.
        on_request: An ablation, run only where it is named.
    """

    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    on_request: bool = False


# Every option is written out, so that a new default of the layer does not change what is compared.
STRICT: Mapping[str, Any] = {
    "window_size": 8,
    "rho": 1.0,
    "variance": "centred",
    "gradient": "full",
    "d_max": 0.25,
    "r_max": 1.25,
    "history": "ring",
    "slope_positions": 1024,
}
WIDE: Mapping[str, Any] = {**STRICT, "d_max": 1.0, "r_max": 2.0}
WHOLE: Mapping[str, Any] = {**STRICT, "d_max": math.inf, "r_max": math.inf}
PAPER: Mapping[str, Any] = {**WHOLE, "variance": "paper", "gradient": "paper"}
LONG: Mapping[str, Any] = {"history": "exponential", "window_size": 32}

METHODS: Mapping[str, Method] = {
    "bn": Method("bn"),
    "gn": Method("gn"),
    "frozen": Method("frozen"),
    "brn": Method("brn"),
    "cbn": Method("cbn", STRICT),
    "cbn-naive": Method("cbn", {**WHOLE, "rho": 0.0, "gradient": "paper"}),
    "cbn-paper": Method("cbn", PAPER),
    "cbn-wide": Method("cbn", WIDE, on_request=True),
    "cbn-exponential": Method("cbn", {**WIDE, **LONG}, on_request=True),
    "cbn-whole": Method("cbn", WHOLE, on_request=True),
    "cbn-medium": Method("cbn", {**STRICT, "d_max": 0.5, "r_max": 1.5}, on_request=True),
    "cbn-sampled": Method("cbn", {**STRICT, "slope_positions": 64}, on_request=True),
    "cbn-factored": Method("cbn", {**STRICT, "slope_rank": 8}, on_request=True),
    "cbn-untaylored": Method("cbn", {**STRICT, "rho": 0.0}, on_request=True),
    "cbn-tight": Method(
        "cbn",
        {**STRICT, "d_max": 0.25 / math.sqrt(2), "r_max": 1.25 ** (1 / math.sqrt(2))},
        on_request=True,
    ),
    "cbn-exponential-strict": Method("cbn", {**STRICT, **LONG}, on_request=True),
}
# What the tables call them.
DESCRIPTIONS: Mapping[str, str] = {
    "bn": "nn.BatchNorm2d",
    "gn": "group normalization",
    "frozen": "statistics of the training images at the initial weights, never moved",
    "brn": "Batch Renormalization, its schedule scaled to the run",
    "cbn": "the full gradient; trust within 0.25 deviations and a factor of 1.25: the default",
    "cbn-naive": "no Taylor step, the paper's gradient, the whole window of 8",
    "cbn-paper": "the paper's equations, the whole window of 8",
    "cbn-wide": "the full gradient; trust within 1 deviation and a factor of 2",
    "cbn-exponential": "cbn-wide with an exponential window of 32",
    "cbn-whole": "the full gradient, the whole window of 8",
    "cbn-medium": "trust within 0.5 deviations and a factor of 1.5",
    "cbn-sampled": "the default with slopes from 64 positions in place of 1024",
    "cbn-factored": "the default with slopes as factors of 8 positions where they are smaller",
    "cbn-untaylored": "the default without the Taylor step",
    "cbn-tight": "trust within 0.25/sqrt(2) deviations and a factor of 1.25^(1/sqrt(2))",
    "cbn-exponential-strict": "the default's trust with an exponential window of 32",
}
DEFAULT_METHODS = tuple(name for name, method in METHODS.items() if not method.on_request)


def conversion_options(method: Method, total_steps: int) -> dict[str, Any]:
    """Return the options for `norm.convert_batchnorm`.

    Args:
        method: The method.
        total_steps: Optimizer steps of the run.
    """
    options = dict(method.options)
    if method.kind == "brn":
        options["total_steps"] = total_steps
    return options


@dataclass(frozen=True, order=True)
class Cell:
    """What is compared: a method on a set at a batch size."""

    set_name: str
    method: str
    batch: int
    accumulate: bool

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step."""
        return SETS[self.set_name].images_per_step if self.accumulate else self.batch

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of a run."""
        return SETS[self.set_name].images // self.images_per_step


@dataclass(frozen=True, order=True)
class Run:
    """One training: a cell, a seed and a base learning rate."""

    cell: Cell
    seed: int
    base_lr: float

    @property
    def key(self) -> str:
        """Name of the run in the results file."""
        cell = self.cell
        how = "accumulate" if cell.accumulate else "step"
        return (
            f"{cell.set_name}/{cell.method}/batch{cell.batch}/{how}/"
            f"seed{self.seed}/lr{self.base_lr:g}"
        )

    @property
    def learning_rate(self) -> float:
        """The base rate times the square root of the images of an optimizer step."""
        return self.base_lr * math.sqrt(self.cell.images_per_step)

    @property
    def configuration(self) -> str:
        """A hash of everything that decides the result and is not in the key."""
        method = METHODS[self.cell.method]
        parts = {
            "version": PROTOCOL_VERSION,
            "set": asdict(SETS[self.cell.set_name]),
            "kind": method.kind,
            "options": dict(method.options),
            "decay": WEIGHT_DECAY,
            "warmup": WARMUP_SHARE,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def plan_cells(
    sets: Sequence[str], methods: Sequence[str], batches: Sequence[int], accumulate: Sequence[bool]
) -> list[Cell]:
    """Return the cells to run, set by set, those that need no other cell's choice first.

    A batch that is a whole optimizer step needs no accumulation, so that cell is left out: it is
    the one without.  Batches a set is not run at are left out as well.
    """
    return [
        Cell(set_name, method, batch, accumulating)
        for set_name in sets
        for batch in batches
        if batch in SETS[set_name].batches
        for accumulating in accumulate
        if not (accumulating and batch >= SETS[set_name].images_per_step)
        for method in methods
    ]


def tried_rates(cell: Cell, validation: Mapping[Run, float]) -> list[float]:
    """Return the base rates with a validation score on seed 0, ascending."""
    return [rate for rate in RATE_GRID if Run(cell, 0, rate) in validation]


def choosing_seeds(cell: Cell, validation: Mapping[Run, float]) -> list[int]:
    """Return the seeds out of the first `CHOOSING_SEEDS` that every tried rate was run with."""
    tried = tried_rates(cell, validation)
    return [
        seed
        for seed in range(CHOOSING_SEEDS)
        if all(Run(cell, seed, rate) in validation for rate in tried)
    ]


def chosen_rate(cell: Cell, validation: Mapping[Run, float]) -> float | None:
    """Return the tried rate with the best mean validation score over the `choosing_seeds`.

    The smaller rate wins a tie. None while one of `BASE_RATES` is missing.
    """
    tried = tried_rates(cell, validation)
    if not set(BASE_RATES) <= set(tried):
        return None
    seeds = choosing_seeds(cell, validation)
    totals = {rate: sum(validation[Run(cell, seed, rate)] for seed in seeds) for rate in tried}
    return max(tried, key=lambda rate: (totals[rate], -rate))


def runs_to_choose(cell: Cell, validation: Mapping[Run, float], seeds: int) -> list[Run]:
    """Return the runs that the choice of the rate still waits for.

    Every rate is tried with the same seeds. Once the best lies between two others, or at an end of
    `RATE_GRID`, there is none.

    Args:
        cell: The cell.
        validation: Validation scores of the runs that are done.
        seeds: Seeds to choose by, at most `CHOOSING_SEEDS`.
    """
    rates = sorted({*BASE_RATES, *tried_rates(cell, validation)})
    missing = _missing(cell, rates, seeds, validation)
    if missing:
        return missing
    best = chosen_rate(cell, validation)
    assert best is not None  # Nothing is missing of the base rates.
    place = RATE_GRID.index(best)
    beyond = [rate for rate in RATE_GRID[max(0, place - 1) : place + 2] if rate not in rates]
    return _missing(cell, beyond, seeds, validation)


def _missing(
    cell: Cell, rates: Iterable[float], seeds: int, validation: Mapping[Run, float]
) -> list[Run]:
    runs = [Run(cell, seed, rate) for rate in rates for seed in range(seeds)]
    return [run for run in runs if run not in validation]


def edge_mark(rate: float, tried: Sequence[float]) -> str:
    """Return an arrow towards where a better rate may lie, or "" for a rate between two others."""
    if rate == min(tried):
        return "↓"
    return "↑" if rate == max(tried) else ""


def open_runs(
    cells: Iterable[Cell],
    seeds: int,
    validation: Mapping[Run, float],
    taken: Collection[Run],
    *,
    to_choose_by: int = CHOOSING_SEEDS,
) -> Iterator[Run]:
    """Yield the runs that can start now, in the cells' order.

    Args:
        cells: The plan.
        seeds: Seeds of a cell, 0 among them.
        validation: Validation scores of the runs that are done.
        taken: Runs that are under way or failed.
        to_choose_by: Seeds to choose the rate by, at most `CHOOSING_SEEDS`.
    """
    for cell in cells:
        wanted = runs_to_choose(cell, validation, min(seeds, to_choose_by))
        if not wanted:
            rate = chosen_rate(cell, validation)
            wanted = [Run(cell, seed, rate) for seed in range(seeds) if rate is not None]
        yield from (run for run in wanted if run not in validation and run not in taken)


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    rest = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * rest))
