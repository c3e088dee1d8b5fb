"""What is run: sets, normalizations, resolutions, seeds, and the budget that all of it has.

A run may show the network so many megapixels, whatever its resolution, so that every run costs
about the same time on one machine and the result does not depend on the machine's speed.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Task = Literal["segmentation", "detection"]
Resolution = Literal["crops", "half", "quarter"]


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
    "crops": {"mode": "crop", "height_px": 448, "width_px": 448, "defect_rate": 0.5},
    "half": {"mode": "resized", "factor": 0.5},
    "quarter": {"mode": "resized", "factor": 0.25},
}
SEEDS = 3
SPLIT_SEED = 0


@dataclass(frozen=True)
class Profile:
    """How much a run may cost.

    Attributes:
        name: Of it.
        megapixels: That the network is shown in training.
        model: The segmentation network's specification.
        detector: The detector's.
        most_frames: Of each split; None takes all.
    """

    name: str
    megapixels: float
    model: dict[str, Any]
    detector: dict[str, Any]
    most_frames: int | None = None

    def model_for(self, task: Task) -> dict[str, Any]:
        """Return the network for a task."""
        return self.model if task == "segmentation" else self.detector


FULL = Profile(
    "full",
    megapixels=120,
    model={"encoder": "resnet18"},
    detector={**DETECTOR, "encoder": "resnet18"},
)
QUICK = Profile(
    "quick",
    megapixels=4,
    model={
        "encoder": "mobilenet_v3_small",
        "encoder_depth": 4,
        "decoder_channels": [32, 16, 8, 8],
    },
    detector={
        **DETECTOR,
        "encoder": "mobilenet_v3_small",
        "detection": {"pyramid_channels": 32},
    },
    most_frames=4,
)


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
        spec = SETS[self.cell.set_name]
        stated = [
            asdict(profile),
            asdict(spec),
            RESOLUTIONS[self.cell.resolution],
            self.cell.norm,
            self.seed,
            BATCH_SIZE,
            PRECISION,
            SPLIT_SEED,
        ]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:12]


def plan_cells(sets: Sequence[str], norms: Sequence[str]) -> list[Cell]:
    """Return every normalization on native crops, and smaller frames under the product's own.

    A detector is not trained on smaller frames.
    """
    cells = []
    for name in sets:
        cells += [Cell(name, norm, "crops") for norm in norms]
        if RESOLUTION_NORM in norms and SETS[name].task == "segmentation":
            cells += [Cell(name, RESOLUTION_NORM, "half"), Cell(name, RESOLUTION_NORM, "quarter")]
    return cells


def run_config(
    run: Run, profile: Profile, *, mean_frame_area_px: float, manifest: str, root: str
) -> dict[str, Any]:
    """Return the ``config.json`` of a run.

    Args:
        run: Which.
        profile: Its budget.
        mean_frame_area_px: Of the training frames.
        manifest: Path of the version's manifest.
        root: What its file names are relative to.
    """
    resolution = RESOLUTIONS[run.cell.resolution]
    if resolution["mode"] == "crop":
        seen_px = resolution["height_px"] * resolution["width_px"]
    else:
        seen_px = mean_frame_area_px * resolution["factor"] ** 2
    steps = max(1, math.ceil(profile.megapixels * 1e6 / (BATCH_SIZE * seen_px)))
    return {
        "data": {"manifest": manifest, "root": root},
        "model": profile.model_for(SETS[run.cell.set_name].task),
        "norm": {"kind": run.cell.norm},
        "resolution": resolution,
        "batch_size": BATCH_SIZE,
        # An epoch has one step at least.
        "budget": {"max_epochs": steps, "max_steps": steps},
        "early_stopping": None,
        "seed": run.seed,
        # What `auto` takes on a GPU that knows it, and half the time on a processor.
        "precision": PRECISION,
    }
