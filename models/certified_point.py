"""The operating point that proves a bound on escapes, or what is missing for one.

Each class is proven by itself: of the parts that show it, at most the stated share has no region
of it above the operating point.  A part counts by group where frames have one.  A class that can't
be proven keeps the thresholds it had: the lowest score of a few parts is no threshold.
"""

from collections.abc import Callable, Sequence
from typing import Any

from models.certificate import Certificate, EscapeConstraint, certify
from models.defects import ClassThreshold, OperatingPoint
from models.part_scores import AREAS_PX, ScoredPart, candidates


def certified_point(
    point: OperatingPoint,
    parts: Sequence[ScoredPart],
    constraint_of: Callable[[str], EscapeConstraint],
    areas_px: tuple[int, ...] = AREAS_PX,
) -> OperatingPoint:
    """Return an operating point with the thresholds that prove a constraint with least overkill.

    Args:
        point: What a class keeps that can't be proven.
        parts: The calibration parts.
        constraint_of: Asked for each class by its name.
        areas_px: Minimum areas that parts were scored at.

    Returns:
        Each class's ``evidence`` holds its ``certificate``, proven or not.
    """
    proven = {}
    for name, before in point.classes.items():
        scored = candidates(parts, name, areas_px)
        if len(scored[0].defective) == 0:
            # `point` says already that no calibration frame shows the class.
            proven[name] = before
            continue
        proven[name] = _threshold(before, certify(scored, constraint_of(name)), areas_px)
    return OperatingPoint(classes=proven)


def _threshold(
    before: ClassThreshold, certificate: Certificate, areas_px: tuple[int, ...]
) -> ClassThreshold:
    told = {"certificate": certificate_evidence(certificate)}
    if not certificate.is_proven:
        return before.model_copy(update={"evidence": {**before.evidence, **told}})
    return before.model_copy(
        update={
            "threshold": certificate.threshold,
            "min_area_px": areas_px[certificate.candidate],
            "evidence": told,
        }
    )


def certificate_evidence(certificate: Certificate) -> dict[str, Any]:
    """Return a certificate in a form that JSON can hold."""
    return {
        "max_escape": certificate.constraint.max_escape,
        "confidence": certificate.constraint.confidence,
        "is_proven": certificate.is_proven,
        "bound": certificate.bound,
        "escapes": certificate.escapes,
        "defective_parts": certificate.defective,
        "false_alarms": certificate.false_alarms,
        "good_parts": certificate.good,
        "missing_parts": certificate.missing,
        "allowed_escapes": certificate.allowed_escapes,
        "candidates": certificate.candidates,
        "never_rejected": certificate.never_rejected,
    }
