"""The gate: what a model proves against what its deployment asks."""

from typing import Any

import pytest
from pydantic import ValidationError

from models import (
    BundleInfo,
    ClassThreshold,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
)
from models.certificate import upper_bound
from service.errors import InvalidRequest
from service.serving.deployment_resources import Constraint, Gate, Override
from service.serving.promotion import judge, refusal

OVERRIDE = Override(reason="the line stands still", by="M. Weber")


def described(
    metrics: dict[str, Any] | None = None, **certificates: dict[str, Any] | None
) -> BundleInfo:
    """A model with a certificate a class, or none."""
    classes = {
        name: ClassThreshold(evidence={} if told is None else {"certificate": told})
        for name, told in certificates.items()
    }
    return BundleInfo(
        classes=tuple(classes),
        model=ModelSpec(encoder="resnet18", encoder_depth=3, decoder_channels=(16, 8, 8)),
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=8
        ),
        operating_point=OperatingPoint(classes=classes),
        dataset_digest="0" * 64,
        metrics=metrics or {},
    )


def certificate(
    *, escapes: int, parts: int, confidence: float = 0.95, is_proven: bool = True
) -> dict[str, Any]:
    """As the evidence of a class holds them, chosen from five areas."""
    each = 1 - (1 - confidence) / 5
    return {
        "max_escape": 0.02,
        "confidence": confidence,
        "is_proven": is_proven,
        "bound": upper_bound(escapes, parts, each),
        "escapes": escapes,
        "allowed_escapes": escapes,
        "candidates": 5,
        "defective_parts": parts,
        "false_alarms": 0,
        "good_parts": 50,
        "missing_parts": 0 if is_proven else 400,
    }


def escape(max_rate: float, **more: Any) -> Constraint:
    return Constraint.model_validate({"escape": {"max_rate": max_rate, **more}})


def test_without_a_constraint_the_gate_says_that_nothing_is_proven() -> None:
    gate = judge(described(pit=None), None, None)
    assert gate.outcome == "no_constraint"
    assert "nothing was asked" in gate.notes[0]


def test_a_certificate_meets_what_it_bounds_and_nothing_tighter() -> None:
    told = certificate(escapes=2, parts=1000)
    assert 0.006 < told["bound"] < 0.01
    assert judge(described(pit=told), escape(0.01), None).outcome == "met"
    gate = judge(described(pit=told), escape(0.006), None)
    assert gate.outcome == "refused"
    (shortfall,) = gate.shortfalls
    assert shortfall.proven == pytest.approx(told["bound"])
    # A thousand parts without an escape would be enough: the threshold is the one that lacks.
    assert shortfall.missing_parts == 0
    assert "another threshold" in shortfall.detail


def test_every_class_must_prove_its_own_rate() -> None:
    info = described(pit=certificate(escapes=0, parts=1000), dent=certificate(escapes=0, parts=80))
    gate = judge(info, escape(0.01), None)
    assert [shortfall.class_name for shortfall in gate.shortfalls] == ["dent"]
    assert judge(info, escape(0.01, per_class={"dent": 0.1}), None).outcome == "met"
    with pytest.raises(InvalidRequest, match="scratch"):
        judge(info, escape(0.01, per_class={"scratch": 0.1}), None)


def test_a_higher_confidence_asks_for_more_than_the_bound_that_was_stated() -> None:
    told = certificate(escapes=0, parts=470)
    assert judge(described(pit=told), escape(0.01, confidence=0.95), None).outcome == "met"
    assert judge(described(pit=told), escape(0.01, confidence=0.99), None).outcome == "refused"
    old = {name: told[name] for name in told if name not in ("allowed_escapes", "candidates")}
    assert judge(described(pit=old), escape(0.01, confidence=0.9), None).outcome == "met"
    assert judge(described(pit=old), escape(0.01, confidence=0.99), None).outcome == "refused"


@pytest.mark.parametrize(
    "told", [None, certificate(escapes=0, parts=20, is_proven=False)], ids=["none", "unproven"]
)
def test_what_is_not_proven_is_refused_with_the_parts_it_would_take(
    told: dict[str, Any] | None,
) -> None:
    gate = judge(described(pit=told), escape(0.01), None)
    (shortfall,) = gate.shortfalls
    # log(0.01) / log(0.99): five areas share the five percent.
    assert shortfall.missing_parts == 459 - shortfall.parts
    assert shortfall.proven is None
    told_why = refusal("line-1", "mdl_a", gate)
    assert str(shortfall.missing_parts) in told_why.detail
    assert f"{shortfall.missing_parts} more defective parts" in (told_why.hint or "")


def test_overkill_is_bounded_by_the_good_test_parts_and_not_by_their_rate() -> None:
    asked = Constraint.model_validate({"overkill": {"max_rate": 0.05}})
    many = {"by_part": {"overkill": {"events": 1, "n": 100}}}
    few = {"by_part": {"overkill": {"events": 0, "n": 20}}}
    assert judge(described(many, pit=None), asked, None).outcome == "met"
    gate = judge(described(few, pit=None), asked, None)
    (shortfall,) = gate.shortfalls
    assert shortfall.proven == pytest.approx(1 - 0.05 ** (1 / 20))
    # That is log(0.05) / log(0.95), rounded up.
    assert shortfall.missing_parts == 59 - 20
    assert judge(described({}, pit=None), asked, None).shortfalls[0].proven is None


def test_an_override_lets_a_model_through_and_is_not_in_force_where_it_was_not_needed() -> None:
    proven, unproven = described(pit=certificate(escapes=0, parts=1000)), described(pit=None)
    let_through = judge(unproven, escape(0.01), OVERRIDE)
    assert (let_through.outcome, let_through.override) == ("overridden", OVERRIDE)
    assert let_through.shortfalls
    met = judge(proven, escape(0.01), OVERRIDE)
    assert (met.outcome, met.override) == ("met", None)
    assert met.notes == ("the override was not needed and is not in force",)
    assert isinstance(met, Gate)


@pytest.mark.parametrize(
    "asked",
    [{}, {"escape": {"max_rate": 0}}, {"escape": {"max_rate": 0.01, "confidence": 0.4}}, {"x": 1}],
)
def test_a_constraint_that_asks_nothing_or_the_impossible_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Constraint.model_validate(asked)


def test_parts_that_no_threshold_rejects_are_made_up_for_by_others_and_by_no_threshold() -> None:
    blind = {
        **certificate(escapes=3, parts=100, is_proven=False),
        "bound": 1.0,
        "allowed_escapes": 0,
        "candidates": 1,
        "never_rejected": 3,
    }
    constraint = Constraint.model_validate({"escape": {"max_rate": 0.05}})
    (shortfall,) = judge(described(pit=blind), constraint, None).shortfalls
    # 153 parts prove five percent with three escapes; a hundred without one would have done.
    assert upper_bound(3, 153, 0.95) <= 0.05 < upper_bound(3, 152, 0.95)
    assert shortfall.missing_parts == 153 - 100
    assert shortfall.proven is None
