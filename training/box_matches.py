"""Which labelled boxes are found, which reported ones are false, and where to draw the line.

A labelled box counts as found if a reported box of its class overlaps it by `MATCH_IOU` or more,
intersection over union.  Reported boxes are taken strongest first, each takes the labelled box that
it overlaps most of those not yet taken, and one that finds none left is false.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.certificate import exact_interval
from training.average_precision import JudgedFrame

MATCH_IOU = 0.5


@dataclass(frozen=True)
class ScoredMatches:
    """One class over a data set.

    Attributes:
        scores: (M,) of the reported boxes, strongest first.
        hits: (M,) whether each found a labelled one.
        on_good: (M,) whether each is on a frame without any labelled defect.
        found_at: (L,) of the labelled ones: the score of the box that finds each, -1 where none
            does.
        sides_px: (L, 2) width and height of the labelled ones.
        frames: How many frames were looked at.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    on_good: NDArray[np.bool_]
    found_at: NDArray[np.float64]
    sides_px: NDArray[np.float64]
    frames: int

    @property
    def labelled(self) -> int:
        """How many boxes are labelled."""
        return len(self.found_at)

    def at(self, threshold: float) -> tuple[int, int]:
        """Return how many labelled boxes are found and how many reported ones are false."""
        found = int(self.hits[self.scores >= threshold].sum())
        return found, int((self.scores >= threshold).sum()) - found


def match_boxes(frames: Sequence[JudgedFrame], class_index: int) -> ScoredMatches:
    """Match one class's boxes over all frames."""
    scores: list[float] = []
    hits: list[bool] = []
    on_good: list[bool] = []
    found_at: list[float] = []
    sides: list[NDArray[np.float32]] = [np.zeros((0, 2), np.float32)]
    for frame in frames:
        mine = frame.found.classes == class_index
        truth = frame.labelled.boxes[frame.labelled.classes == class_index]
        own_scores = frame.found.scores[mine].tolist()
        places = match_places(frame.found.boxes[mine], truth)
        by_place = dict(zip(places, own_scores, strict=True))
        scores += own_scores
        hits += [place >= 0 for place in places]
        on_good += [frame.is_good] * len(places)
        found_at += [by_place.get(place, -1.0) for place in range(len(truth))]
        sides.append(truth[:, 2:] - truth[:, :2])
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    return ScoredMatches(
        scores=np.asarray(scores, np.float64)[order],
        hits=np.asarray(hits, np.bool_)[order],
        on_good=np.asarray(on_good, np.bool_)[order],
        found_at=np.asarray(found_at, np.float64),
        sides_px=np.concatenate(sides).astype(np.float64),
        frames=len(frames),
    )


def match_places(reported: NDArray[np.float32], labelled: NDArray[np.float32]) -> list[int]:
    """Return which labelled box each reported one finds; -1 for none.

    Args:
        reported: (M, 4), strongest first.
        labelled: (L, 4) of the same class and frame.
    """
    overlaps = intersection_over_union(reported, labelled)
    places = []
    for row in overlaps:
        best = int(row.argmax()) if row.size else -1
        if best >= 0 and row[best] < MATCH_IOU:
            best = -1
        if best >= 0:
            overlaps[:, best] = 0
        places.append(best)
    return places


def intersection_over_union(
    boxes: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the overlap (M, M') of each pair of boxes (M, 4) and (M', 4)."""
    ours, theirs = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    shared = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    intersection = np.clip(shared, 0, None).prod(axis=2)
    areas = [np.prod(group[..., 2:] - group[..., :2], axis=2) for group in (ours, theirs)]
    overlap: NDArray[np.float64] = intersection / np.maximum(
        areas[0] + areas[1] - intersection, 1e-9
    )
    return overlap


def best_threshold(matches: ScoredMatches) -> tuple[float, dict[str, float]] | None:
    """Return the score threshold of highest F1 of boxes found, and the counts behind it.

    Of equals the lowest wins, since a defect that is not reported is worse than one too many; it is
    put midway to the next weaker box, where it stands the most drift.  None if no labelled box is
    found at any score.
    """
    if not matches.hits.any():
        return None
    # Boxes of equal score are reported together: only the last of them ends a choice.
    last = np.append(np.diff(matches.scores) < 0, True)
    found = np.cumsum(matches.hits)
    reported = np.arange(1, len(matches.hits) + 1)
    scores = np.where(last, 2 * found / (matches.labelled + reported), -1.0)
    place = int(np.flatnonzero(scores >= scores.max() - 1e-12)[-1])
    weaker = matches.scores[place + 1] if place + 1 < len(matches.scores) else 0.0
    return float(matches.scores[place] + weaker) / 2, {
        "labelled": matches.labelled,
        "found": int(found[place]),
        "false": int(reported[place] - found[place]),
        "f1": float(scores[place]),
    }


def recall_at_false_rates(
    matches: ScoredMatches, false_per_frame: Sequence[float]
) -> list[dict[str, Any]]:
    """Return the share of labelled boxes found at given numbers of false boxes a frame.

    That is a free-response curve read at a few places: at each the threshold is the lowest that
    keeps to the number.
    """
    false = np.cumsum(~matches.hits)
    last = np.append(np.diff(matches.scores) < 0, True) if len(false) else np.zeros(0, np.bool_)
    points = []
    for rate in false_per_frame:
        allowed = np.flatnonzero(last & (false <= rate * matches.frames))
        found = int(matches.hits[: allowed[-1] + 1].sum()) if allowed.size else 0
        points.append(
            {"false_boxes_a_frame": rate, "recall": exact_interval(found, matches.labelled)}
        )
    return points
