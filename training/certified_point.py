"""The operating point that proves a bound on escapes, or what is missing for one.

Each class is proven by itself: of the parts that show it, at most the stated share has no region
of it above the operating point.  A part counts by group where frames have one.  A class that can't
be proven keeps the thresholds it had: the lowest score of a few parts is no threshold.
"""

from collections.abc import Mapping
from typing import Any

from models import ClassThreshold, OperatingPoint
from models.certificate import Certificate, EscapeConstraint, certify
from training.evaluation import Frames, ProbabilityModel
from training.part_scores import AREAS_PX, score_parts


def certified_point(
    model: ProbabilityModel,
    frames: Frames,
    point: OperatingPoint,
    parts: Mapping[str, str],
    constraint: EscapeConstraint,
) -> OperatingPoint:
    """Return an operating point with the thresholds that prove a constraint with least overkill.

    Args:
        model: The frozen model.
        frames: Called once; gives the calibration frames.
        point: What a class keeps that can't be proven.
        parts: The part of each frame by its name; a frame that is not in it is a part of its own.
        constraint: Asked of each class.

    Returns:
        Each class's ``evidence`` holds its ``certificate``, proven or not.
    """
    classes = tuple(point.classes)
    scored = score_parts(model, frames(), classes, parts)
    proven = {}
    for name, before in point.classes.items():
        candidates = scored.candidates(name)
        if len(candidates[0].defective) == 0:
            # `point` says already that no calibration frame shows the class.
            proven[name] = before
            continue
        proven[name] = _threshold(before, certify(candidates, constraint))
    return OperatingPoint(classes=proven)


def _threshold(before: ClassThreshold, certificate: Certificate) -> ClassThreshold:
    told = {"certificate": certificate_evidence(certificate)}
    if not certificate.is_proven:
        return before.model_copy(update={"evidence": {**before.evidence, **told}})
    return before.model_copy(
        update={
            "threshold": certificate.threshold,
            "min_area_px": AREAS_PX[certificate.candidate],
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
    }
