"""The gate before a line: does what a model proves meet what its deployment asks?

Escapes are proven by the certificate that the operating point carries (`models.certificate`,
``docs/decisions/0029``): it was chosen on calibration parts so that the bound holds at the
threshold they chose.  Overkill is proven by the good test parts, which chose nothing.  A rate that
was merely measured proves nothing here: what counts is its upper bound.
"""

from typing import Any

from models import BundleInfo
from models.certificate import EscapeConstraint, parts_needed, upper_bound
from models.part_scores import AREAS_PX, BOX_AREAS_PX
from service.errors import Conflict, InvalidRequest
from service.serving.deployment_resources import (
    Constraint,
    EscapeLimit,
    Gate,
    OverkillLimit,
    Override,
    Shortfall,
)


class ConstraintNotMet(Conflict):
    """A model does not prove what its deployment asks.

    Attributes:
        gate: What is asked, what is proven and what is missing.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        file: str | None = None,
        where: str | None = None,
        hint: str | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(code, detail, file=file, where=where, hint=hint)
        self.gate = gate


def refusal(deployment: str, model_id: str, gate: Gate) -> ConstraintNotMet:
    """Return the error that tells what a refused model lacks, and what to do about it."""
    lacking = "; ".join(shortfall.detail for shortfall in gate.shortfalls)
    return ConstraintNotMet(
        "constraint_not_met",
        f"{model_id} does not prove what deployment {deployment!r} asks: {lacking}",
        where="/model",
        hint=_remedy(gate.shortfalls[0], model_id),
        gate=gate,
    )


def judge(info: BundleInfo, constraint: Constraint | None, override: Override | None) -> Gate:
    """Return how a model stands to a constraint; ``refused`` where it may not be served.

    Args:
        info: The model's description, whose operating point and metrics are the evidence.
        constraint: What the deployment asks; None asks nothing.
        override: Lets the model through in any case.

    Raises:
        InvalidRequest: The constraint names a class that the model does not know.
    """
    if constraint is None:
        notes = ("no constraint: nothing was asked of the model, so nothing is proven of it",)
        return Gate(outcome="no_constraint", notes=(*notes, *_unneeded(override)))
    found: list[str | Shortfall] = []
    if constraint.escape is not None:
        check_classes(constraint.escape, info.classes, where="/constraint/escape/per_class")
        found += [_judge_escape(name, constraint.escape, info) for name in info.classes]
    if constraint.overkill is not None:
        found.append(_judge_overkill(constraint.overkill, info.metrics))
    proven = tuple(each for each in found if isinstance(each, str))
    shortfalls = tuple(each for each in found if isinstance(each, Shortfall))
    if not shortfalls:
        return Gate(outcome="met", proven=proven, notes=_unneeded(override))
    return Gate(
        outcome="refused" if override is None else "overridden",
        proven=proven,
        shortfalls=shortfalls,
        override=override,
    )


def proven_bound(certificate: dict[str, Any], confidence: float) -> float | None:
    """Return the upper bound of the escape rate that a certificate proves, None for no proof.

    The rank of the threshold among the defective parts' scores was fixed by their number, so its
    bound holds at any confidence (``docs/decisions/0029``), not only at the one it was chosen for.
    """
    if not certificate.get("is_proven"):
        return None
    if "allowed_escapes" not in certificate:
        # Written before ranks were: good for what it says, at up to its confidence.
        return certificate["bound"] if confidence <= certificate["confidence"] else None
    return upper_bound(
        certificate["allowed_escapes"],
        certificate["defective_parts"],
        1 - (1 - confidence) / certificate["candidates"],
    )


def _judge_escape(name: str, limit: EscapeLimit, info: BundleInfo) -> str | Shortfall:
    certificate = info.operating_point.classes[name].evidence.get("certificate", {})
    rate = limit.rate_of(name)
    bound = proven_bound(certificate, limit.confidence)
    parts = int(certificate.get("defective_parts", 0))
    asked = f"at most {_percent(rate)} of the parts with {name!r} called OK"
    sure = f"at {_percent(limit.confidence)} confidence"
    if bound is not None and bound <= rate:
        return f"{asked}: {_percent(bound)} proven {sure} by {parts} defective parts"
    scored = BOX_AREAS_PX if info.task == "detection" else AREAS_PX
    candidates = int(certificate.get("candidates", len(scored)))
    each = EscapeConstraint(rate, 1 - (1 - limit.confidence) / candidates)
    # Parts on which a detector has no box escape whatever the threshold.
    never = int(certificate.get("never_rejected", 0))
    missing = max(0, parts_needed(each, never) - parts)
    is_proven = "nothing is proven" if bound is None else f"{_percent(bound)} is proven"
    lacking = (
        f"{missing} more defective parts of which none escapes would prove it"
        if missing
        else f"the {parts} defective parts may prove it at another threshold"
    )
    return Shortfall(
        limit="escape",
        class_name=name,
        max_rate=rate,
        confidence=limit.confidence,
        proven=bound,
        parts=parts,
        missing_parts=missing,
        detail=f"{asked}, {sure}, is asked; {is_proven} by {parts} defective parts; {lacking}",
    )


def _judge_overkill(limit: OverkillLimit, metrics: dict[str, Any]) -> str | Shortfall:
    # Frames of one part are one piece of evidence.
    counted = metrics.get("by_part", {}).get("overkill") or metrics.get("overkill") or {}
    events, parts = int(counted.get("events") or 0), int(counted.get("n") or 0)
    bound = upper_bound(events, parts, limit.confidence) if parts else None
    asked = f"at most {_percent(limit.max_rate)} of the good parts called NG"
    sure = f"at {_percent(limit.confidence)} confidence"
    seen = f"{events} of {parts} good test parts were called NG"
    if bound is not None and bound <= limit.max_rate:
        return f"{asked}: {_percent(bound)} proven {sure}; {seen}"
    needed = parts_needed(EscapeConstraint(limit.max_rate, limit.confidence), events)
    missing = max(0, needed - parts)
    return Shortfall(
        limit="overkill",
        class_name=None,
        max_rate=limit.max_rate,
        confidence=limit.confidence,
        proven=bound,
        parts=parts,
        missing_parts=missing,
        detail=f"{asked}, {sure}, is asked; "
        + ("nothing is proven" if bound is None else f"{_percent(bound)} is proven")
        + f": {seen}; {missing} more of which none is called NG would prove it",
    )


def check_classes(limit: EscapeLimit, classes: tuple[str, ...], *, where: str) -> None:
    """Refuse a limit that names a class that the model does not know.

    Raises:
        InvalidRequest: It names the class, and ``where`` as its place in the request.
    """
    for name in limit.per_class:
        if name not in classes:
            raise InvalidRequest(
                "unknown_class",
                f"the model knows no class {name!r}",
                where=where,
                hint=f"its classes are {', '.join(classes)}",
            )


def _unneeded(override: Override | None) -> tuple[str, ...]:
    return () if override is None else ("the override was not needed and is not in force",)


def _remedy(first: Shortfall, model_id: str) -> str:
    override = "or let it through with an override that gives a reason, which is logged"
    if first.limit == "escape" and first.missing_parts == 0:
        return f"POST /models/{model_id}/operating-points chooses another threshold, {override}"
    kind = "defective" if first.limit == "escape" else "good"
    return f"label {first.missing_parts} more {kind} parts and train again, {override}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.4g} %"
