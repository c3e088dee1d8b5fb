"""How sure a rate is, and where a threshold may lie so that its escape rate is proven.

An escape is a defective part called OK. A part's score is what its strongest evidence reaches: the
part is rejected where the score is at least the threshold. A part that no threshold rejects, since
a detector has no box on it at all, has the score minus infinity.

The threshold is chosen from the calibration parts it is judged by, which ordinarily spoils an
interval. It does not here: at the k-th lowest score of n defective parts the escape rate of the
production they stand for is, whatever the scores' distribution, at most a Beta(k, n - k + 1)
variable (David and Nagaraja, *Order Statistics*, 3rd ed., sec. 2.5; Wilks, *Determination of sample
sizes for setting tolerance limits*, 1941). Its quantile is the Clopper-Pearson upper bound for the
k - 1 escapes seen. Ties make the bound cautious, never wrong. Scores are assumed to be those of
parts drawn independently from that production.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class EscapeConstraint:
    """At most this share of defective parts may pass, proven with this confidence.

    Attributes:
        max_escape: Between 0 and 1, both excluded.
        confidence: Between 0 and 1, both excluded.

    Raises:
        ValueError: One of them is out of range.
    """

    max_escape: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("max_escape", "confidence"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")


@dataclass(frozen=True)
class Candidate:
    """One way of scoring parts, such as a minimum area, with the scores it gives.

    Attributes:
        defective: Scores of the defective calibration parts, at least one.
        good: Scores of the good ones; they choose between proven thresholds and prove nothing.
    """

    defective: NDArray[np.float64]
    good: NDArray[np.float64]


@dataclass(frozen=True)
class Certificate:
    """A threshold with the bound it was proven by, or what is missing for one.

    Attributes:
        constraint: What was asked for.
        is_proven: Whether ``bound`` is at most ``constraint.max_escape``.
        candidate: Index of the chosen way of scoring.
        threshold: Parts of at least this score are rejected.
        escapes: Defective calibration parts below it.
        defective: Defective calibration parts.
        bound: Upper bound of the escape rate at the constraint's confidence, all candidates
            considered.
        false_alarms: Good calibration parts at or above the threshold; optimistic, since the
            choice between proven thresholds looked at them.
        good: Good calibration parts.
        missing: Further defective parts it would take, if none of them escaped; 0 where proven.
        allowed_escapes: The rank that the bound is of; with ties more than ``escapes``.
        candidates: Ways of scoring that the choice was made from.
        never_rejected: Defective calibration parts that no threshold rejects.
    """

    constraint: EscapeConstraint
    is_proven: bool
    candidate: int
    threshold: float
    escapes: int
    defective: int
    bound: float
    false_alarms: int
    good: int
    missing: int
    allowed_escapes: int
    candidates: int
    never_rejected: int


def upper_bound(events: int, trials: int, confidence: float) -> float:
    """Return the one-sided Clopper-Pearson upper bound of a rate.

    Clopper and Pearson, *The use of confidence or fiducial limits*, Biometrika 26 (1934). Without
    trials nothing is known, and the bound is 1.

    Raises:
        ValueError: More events than trials, or one is negative.
    """
    from scipy.stats import beta

    if not 0 <= events <= trials:
        raise ValueError(f"{events} events in {trials} trials")
    if events == trials:
        return 1.0
    return float(beta.ppf(confidence, events + 1, trials - events))


def exact_interval(events: int, trials: int) -> dict[str, Any]:
    """Return a rate with its exact (Clopper-Pearson) 95 % interval and its denominator.

    Without trials, rate and bounds are None: nothing is known.
    """
    from scipy.special import betaincinv

    if trials == 0:
        return {"events": 0, "n": 0, "rate": None, "low": None, "high": None}
    others = trials - events
    return {
        "events": events,
        "n": trials,
        "rate": events / trials,
        "low": float(betaincinv(events, others + 1, 0.025)) if events else 0.0,
        "high": float(betaincinv(events + 1, others, 0.975)) if others else 1.0,
    }


def most_escapes(trials: int, constraint: EscapeConstraint) -> int | None:
    """Return how many escapes in so many defective parts still prove a constraint.

    None where not even zero escapes would.
    """
    if upper_bound(0, trials, constraint.confidence) > constraint.max_escape:
        return None
    # The bound grows with the events; the largest that holds lies below the rate itself.
    low, high = 0, math.ceil(constraint.max_escape * trials)
    while low < high:
        middle = (low + high + 1) // 2
        if upper_bound(middle, trials, constraint.confidence) <= constraint.max_escape:
            low = middle
        else:
            high = middle - 1
    return low


def parts_needed(constraint: EscapeConstraint, escapes: int = 0) -> int:
    """Return how many defective parts prove a constraint when so many of them escape.

    For no escape that is log(1 - confidence) / log(1 - max_escape), about 3 / max_escape at 95 %.
    """
    low, high = escapes, escapes + 1
    while upper_bound(escapes, high, constraint.confidence) > constraint.max_escape:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if upper_bound(escapes, middle, constraint.confidence) > constraint.max_escape:
            low = middle
        else:
            high = middle
    return high


def certify(candidates: Sequence[Candidate], constraint: EscapeConstraint) -> Certificate:
    """Choose the way of scoring and the threshold that prove a constraint with least overkill.

    Each candidate is proven at a confidence of 1 - (1 - confidence) / m for m candidates
    (Bonferroni), so that choosing among them costs nothing of what is claimed. Where the constraint
    can't be proven, the answer is the threshold below every defective part's score: the best that
    the parts support, with the bound it has. Parts that no threshold rejects escape in any case;
    where they are more than the constraint allows nothing is proven, and the bound is 1.

    Raises:
        ValueError: There is no candidate, or they differ in their number of parts, or there is no
            defective part.
    """
    counts = {(len(candidate.defective), len(candidate.good)) for candidate in candidates}
    if len(counts) != 1:
        raise ValueError("certify needs candidates of equally many parts, and at least one")
    defective, good = counts.pop()
    if defective == 0:
        raise ValueError("no defective part: nothing can be said of escapes")
    each = EscapeConstraint(
        constraint.max_escape, 1 - (1 - constraint.confidence) / len(candidates)
    )
    escapes = most_escapes(defective, each)
    allowed = escapes or 0
    best = min(
        range(len(candidates)), key=lambda index: _preference(candidates[index], allowed, index)
    )
    chosen = candidates[best]
    never = int(np.isneginf(chosen.defective).sum())
    is_blind = never > allowed
    is_proven = escapes is not None and not is_blind
    threshold = _order_statistic(chosen.defective, allowed)
    # Ties leave fewer parts below the threshold than its rank says; the bound of the rank is the
    # one that is proven.
    return Certificate(
        constraint=constraint,
        is_proven=is_proven,
        candidate=best,
        threshold=threshold,
        escapes=never if is_blind else int((chosen.defective < threshold).sum()),
        defective=defective,
        # A rank that follows the parts' own number of blind ones would have no bound.
        bound=1.0 if is_blind else upper_bound(allowed, defective, each.confidence),
        false_alarms=int((chosen.good >= threshold).sum()),
        good=good,
        missing=0 if is_proven else parts_needed(each, never) - defective,
        allowed_escapes=allowed,
        candidates=len(candidates),
        never_rejected=never,
    )


def _order_statistic(scores: ArrayLike, rank: int) -> float:
    return float(np.partition(np.asarray(scores, np.float64), rank)[rank])


def _preference(candidate: Candidate, allowed: int, index: int) -> tuple[int, int, int]:
    """Return what is least for the best candidate: false alarms, then escapes, then its place."""
    threshold = _order_statistic(candidate.defective, allowed)
    false_alarms = int((candidate.good >= threshold).sum())
    return false_alarms, int((candidate.defective < threshold).sum()), index
