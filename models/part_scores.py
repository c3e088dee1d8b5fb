"""What a model's scores of parts are, kept with it: the evidence that other thresholds rest on.

A part's score for a class and a minimum area is the highest threshold at which it is still
rejected.  With the scores of the calibration parts another operating point can be proven later, and
with those of the test parts it can be judged, without a frame or a forward pass.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from models.certificate import Candidate, exact_interval
from models.defects import OperatingPoint
from models.errors import BundleError

PART_SCORES_NAME = "part_scores.json"
# Thresholds are thousandths: scores are kept as whole numbers of them.
STEPS = 1000
# Fixed beforehand and not taken from the data: the certificate's confidence counts on it.
AREAS_PX = (1, 4, 16, 64, 256)
# A detector's boxes are reported whatever their area.
BOX_AREAS_PX = (1,)
# The score of a part on which a detector has no box: no threshold rejects it.
NEVER = -1


class ScoredPart(BaseModel):
    """One part, or one frame where frames are no parts.

    Attributes:
        part: Its name.
        defective: Whether any of its frames shows a defect.
        shows: Classes that it shows.
        scores: For each class one score an area, in thousandths; `NEVER` where no threshold rejects
            the part.
        rejected_for: Classes of which the operating point that the run chose reports a defect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: str
    defective: bool
    shows: tuple[str, ...]
    scores: dict[str, tuple[int, ...]]
    rejected_for: tuple[str, ...] = ()


class PartScores(BaseModel):
    """The scored parts of one model.

    Attributes:
        weights_sha256: Of the weights that gave the scores.
        areas_px: Minimum areas, one score each.
        run_point: The operating point that the run chose, of which ``rejected_for`` tells.
        calibration: Parts that thresholds may be chosen on.
        test: Parts that only judge.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    weights_sha256: str = ""
    areas_px: tuple[int, ...] = AREAS_PX
    run_point: OperatingPoint
    calibration: tuple[ScoredPart, ...]
    test: tuple[ScoredPart, ...]


def candidates(
    parts: Sequence[ScoredPart], name: str, areas_px: tuple[int, ...] = AREAS_PX
) -> list[Candidate]:
    """Return the scores of parts that show a class, and of good parts, for each area scored."""
    defective = [part.scores[name] for part in parts if name in part.shows]
    good = [part.scores[name] for part in parts if not part.defective]
    by_area = (
        _shares(np.array(scores, np.float64).reshape(-1, len(areas_px)).T)
        for scores in (defective, good)
    )
    return [Candidate(bad, fine) for bad, fine in zip(*by_area, strict=True)]


def _shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(scores == NEVER, -np.inf, scores / STEPS)


def rates_at(kept: PartScores, point: OperatingPoint) -> dict[str, Any]:
    """Return what an operating point comes to on the test parts: escape and overkill by part.

    No frame is asked again: a class's verdict follows from its score if its area is one of those
    scored, and from what the run counted where the class stands as the run left it.

    Raises:
        ValueError: A class has another threshold than the run's at an area that was not scored.
    """
    rejected = [
        any(_rejects(kept, part, point, name) for name in point.classes) for part in kept.test
    ]
    defective = [part.defective for part in kept.test]
    escapes = sum(bad and not out for bad, out in zip(defective, rejected, strict=True))
    false_alarms = sum(out and not bad for bad, out in zip(defective, rejected, strict=True))
    return {
        "parts": len(kept.test),
        "escape": exact_interval(escapes, sum(defective)),
        "overkill": exact_interval(false_alarms, len(defective) - sum(defective)),
    }


def _rejects(kept: PartScores, part: ScoredPart, point: OperatingPoint, name: str) -> bool:
    chosen, by_run = point.classes[name], kept.run_point.classes[name]
    if (chosen.threshold, chosen.min_area_px) == (by_run.threshold, by_run.min_area_px):
        return name in part.rejected_for
    if chosen.min_area_px not in kept.areas_px:
        raise ValueError(f"no part was scored at {chosen.min_area_px} px")
    score = part.scores[name][kept.areas_px.index(chosen.min_area_px)]
    return score >= round(chosen.threshold * STEPS)


def read_part_scores(bundle: Path, weights_sha256: str) -> PartScores | None:
    """Return the part scores that a bundle holds, None of one that holds none.

    Raises:
        BundleError: They can't be read, or are of other weights.
    """
    path = bundle / PART_SCORES_NAME
    try:
        kept = PartScores.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _damaged(path, f"{path.name} can't be read: {error}") from error
    if kept.weights_sha256 != weights_sha256:
        raise _damaged(path, f"{path.name} tells of other weights than the bundle's")
    return kept


def _damaged(path: Path, detail: str) -> BundleError:
    return BundleError(
        "bundle_damaged",
        detail,
        file=path.name,
        hint="copy the bundle again from where it was trained",
    )
