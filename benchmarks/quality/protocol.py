"""What is run: sets, normalizations, resolutions, seeds, and the budget that all of it has.

A budget is in megapixels and never in time, so that no result depends on the machine's speed.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Task = Literal["segmentation", "detection"]
Resolution = Literal["native", "crops", "half", "quarter"]


@dataclass(frozen=True)
class SetSpec:
    """A real data set and how the product takes it in.

    Attributes:
        folder: Below the folder of data sets.
        task: What its labels can teach.
        group_pattern: What must not lie on both sides of a split, see `data.SplitSpec`.
        unlabelled: What a frame without a label file is.
        classes: None if the labels name them.
        numbers_a_part: Where the pattern's second group is a number, so many following ones are of
            one part.
        twins: Beginnings of the names of frames that show another frame once more; left out.
    """

    folder: str
    task: Task = "segmentation"
    group_pattern: str | None = None
    unlabelled: Literal["reject", "good"] = "reject"
    classes: tuple[str, ...] | None = None
    twins: tuple[str, ...] = ()
    numbers_a_part: int | None = None


SETS: dict[str, SetSpec] = {
    # Photos of neighbouring numbers may show one seam: blocks of ten stay together.  Two photos
    # lie in the set twice.
    "weld_seg": SetSpec(
        "weld_seg/data",
        group_pattern=r"(?:^|/)(\d*)\d[._]",
        classes=("defect",),
        twins=("207", "208"),
    ),
    # A specimen, or a spindle's position whose wear was photographed again and again.
    "bsdata": SetSpec("bsdata", group_pattern=r"(KGT[^_]+|\d{6}_\d{3})_", unlabelled="good"),
    # Crops of two boards; a crop of the second comes back four and eight numbers later, never
    # across a multiple of twelve.
    "deeppcb": SetSpec(
        "deeppcb",
        task="detection",
        group_pattern=r"(\d{5})(\d{3})_test",
        numbers_a_part=12,
    ),
    # The two digits at the beginning of a name tell the board.
    "hripcb": SetSpec("hripcb", task="detection", group_pattern=r"/(\d\d)_"),
}
DETECTOR: dict[str, Any] = {"architecture": "fasterrcnn"}

NORMS = ("bn", "cbn", "brn", "gn")
# The product's own choice at this batch.
RESOLUTION_NORM = "bn"
BATCH_SIZE = 2
PRECISION = "bfloat16"
RESOLUTIONS: dict[Resolution, dict[str, Any]] = {
    "native": {"mode": "native"},
    "crops": {"mode": "crop", "height_px": 448, "width_px": 448, "defect_rate": 0.5},
    "half": {"mode": "resized", "factor": 0.5},
    "quarter": {"mode": "resized", "factor": 0.25},
}
SEEDS = 3
SPLIT_SEED = 0


@dataclass(frozen=True)
class Profile:
    """What a run sees and how much of it.

    Attributes:
        name: Of it.
        unresized: What normalizations are compared on.
        megapixels: Budget of a run on each set.
        counts_native: Whether the budget counts frames as they lie on disk, so that all runs on a
            set take the same number of steps; else what the network is shown, so that all runs cost
            the same.
        model: The segmentation network's specification.
        detector: The detector's.
        looks: At calibration frames, in a run.
        job: What else differs from a job's defaults and changes no result.
        most_frames: Of each split; None takes all.
    """

    name: str
    unresized: Resolution
    megapixels: Mapping[str, float]
    counts_native: bool
    model: dict[str, Any]
    detector: dict[str, Any]
    looks: int
    job: dict[str, Any]
    most_frames: int | None = None

    def model_for(self, task: Task) -> dict[str, Any]:
        """Return the network for a task."""
        return self.model if task == "segmentation" else self.detector

    def quick(self) -> "Profile":
        """Return tiny runs of it, to see that they work."""
        return replace(
            self,
            name=f"quick-{self.name}",
            megapixels=dict.fromkeys(SETS, 4.0),
            model=_TINY_MODEL,
            detector=_TINY_DETECTOR,
            most_frames=4,
        )


_TINY_MODEL: dict[str, Any] = {
    "encoder": "mobilenet_v3_small",
    "encoder_depth": 4,
    "decoder_channels": [32, 16, 8, 8],
}
_TINY_DETECTOR: dict[str, Any] = {
    **DETECTOR,
    "encoder": "mobilenet_v3_small",
    "detection": {"pyramid_channels": 32},
}
CROPS = Profile(
    "crops",
    unresized="crops",
    # Two cores take some hours for sixty runs, and much of each judges whole frames.
    megapixels={"weld_seg": 60.0, "bsdata": 60.0, "deeppcb": 90.0, "hripcb": 90.0},
    counts_native=False,
    model={"encoder": "resnet18"},
    # A quarter of the time that the pyramid's usual 256 channels take.
    detector={**DETECTOR, "encoder": "resnet18", "detection": {"pyramid_channels": 64}},
    looks=2,
    job={},
)
NATIVE = Profile(
    "native",
    unresized="native",
    # Small, for a GPU that is lent; but detectors learn nothing in a few dozen steps.
    megapixels={"weld_seg": 300.0, "bsdata": 200.0, "deeppcb": 120.0, "hripcb": 900.0},
    counts_native=True,
    model=CROPS.model,
    detector={**DETECTOR, "encoder": "resnet18"},
    # On a GPU a look at whole frames takes as long as dozens of steps, most of it on the processor.
    looks=3,
    # A run that steps down because others take the GPU's memory would be another run.  Between its
    # looks at calibration frames a run of a minute needs no checkpoint.
    job={"memory": {"ladder": []}, "checkpoint_every_s": 3600},
)
PROFILES = {profile.name: profile for profile in (CROPS, NATIVE)}


@dataclass(frozen=True, order=True)
class Cell:
    """One row of the table: a set, a normalization and a resolution."""

    set_name: str
    norm: str
    resolution: Resolution


@dataclass(frozen=True, order=True)
class Run:
    """One training of a cell."""

    cell: Cell
    seed: int

    @property
    def key(self) -> str:
        """Its name in the results file, and its directory's."""
        return f"{self.cell.set_name}-{self.cell.norm}-{self.cell.resolution}-{self.seed}"

    def configuration(self, profile: Profile) -> str:
        """Return a digest of everything that decides the outcome but the code."""
        name = self.cell.set_name
        spec = SETS[name]
        stated = [
            # The budgets of other sets change nothing.
            asdict(replace(profile, megapixels={name: profile.megapixels[name]}, job={})),
            asdict(spec),
            RESOLUTIONS[self.cell.resolution],
            self.cell.norm,
            self.seed,
            BATCH_SIZE,
            PRECISION,
            SPLIT_SEED,
        ]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:12]


def plan_cells(sets: Sequence[str], norms: Sequence[str], profile: Profile) -> list[Cell]:
    """Return every normalization on native pixels, and smaller frames under the product's own."""
    cells = []
    for name in sets:
        cells += [Cell(name, norm, profile.unresized) for norm in norms]
        if RESOLUTION_NORM in norms:
            cells += [Cell(name, RESOLUTION_NORM, "half"), Cell(name, RESOLUTION_NORM, "quarter")]
    return cells


def plan_runs(cells: Sequence[Cell], seeds: int, profile: Profile) -> list[Run]:
    """Return the runs in the order in which they are made.

    One seed of everything comes before the next, so that what was cut short is whole as far as it
    goes; within a seed the longest come first, so that runs at once end together.
    """

    def shown_megapixels(cell: Cell) -> float:
        factor = float(RESOLUTIONS[cell.resolution].get("factor", 1.0))
        share = factor**2 if profile.counts_native else 1.0
        return profile.megapixels[cell.set_name] * share

    longest_first = sorted(cells, key=shown_megapixels, reverse=True)
    return [Run(cell, seed) for seed in range(seeds) for cell in longest_first]


def run_config(
    run: Run,
    profile: Profile,
    *,
    mean_frame_area_px: float,
    manifest: str,
    root: str,
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the ``config.json`` of a run.

    Args:
        run: Which.
        profile: Its budget.
        mean_frame_area_px: Of the training frames.
        manifest: Path of the version's manifest.
        root: What its file names are relative to.
        data: How frames are read, which changes no result.
    """
    resolution = RESOLUTIONS[run.cell.resolution]
    if resolution["mode"] == "crop":
        seen_px = resolution["height_px"] * resolution["width_px"]
    elif profile.counts_native:
        seen_px = mean_frame_area_px
    else:
        seen_px = mean_frame_area_px * resolution.get("factor", 1.0) ** 2
    budget_px = profile.megapixels[run.cell.set_name] * 1e6
    steps = max(1, math.ceil(budget_px / (BATCH_SIZE * seen_px)))
    return {
        "data": {"manifest": manifest, "root": root, **data},
        "model": profile.model_for(SETS[run.cell.set_name].task),
        "norm": {"kind": run.cell.norm},
        "resolution": resolution,
        "batch_size": BATCH_SIZE,
        # An epoch has one step at least.
        "budget": {"max_epochs": steps, "max_steps": steps},
        "early_stopping": None,
        "calibration_looks": profile.looks,
        "seed": run.seed,
        # What `auto` takes on a GPU that knows it, and half the time on a processor.
        "precision": PRECISION,
        **profile.job,
    }
