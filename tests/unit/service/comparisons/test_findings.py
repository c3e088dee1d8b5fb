"""What a comparison says is what its counts say, and no more."""

from collections.abc import Callable

import pytest

from service.comparisons.findings import findings, notes
from service.comparisons.outcomes import ArmOutcomes
from service.comparisons.resources import PairResource
from service.comparisons.results import arm_result, compare_arms
from tests.unit.service.comparisons.arms import FOUND, of_detector, outcomes, report

Told = tuple[list[PairResource], str]


@pytest.fixture
def tell() -> Callable[..., Told]:
    def compare(*arms: str, group_size: int = 1) -> Told:
        by_arm = {arm: ArmOutcomes(tuple(outcomes(arm, group_size=group_size))) for arm in arms}
        results = {arm: arm_result(report(arm), by_arm[arm]) for arm in arms}
        pairs = compare_arms(results, by_arm, arms[0])
        said = findings(results, pairs, arms[0])
        grouped = any(each.is_grouped for each in by_arm.values())
        return pairs, "\n".join([*said, *notes("passes", results, pairs, grouped=grouped)])

    return compare


def pair_of(
    pairs: list[PairResource], arm: str, measure: str, below_px: float | None = None
) -> PairResource:
    (found,) = (
        pair
        for pair in pairs
        if (pair.arm, pair.measure, pair.below_px) == (arm, measure, below_px)
        and (below_px is not None or pair.from_px is None)
    )
    return found


def test_a_loss_of_small_defects_is_counted_dated_to_its_size_and_shown(
    tell: Callable[..., Told],
) -> None:
    pairs, told = tell(*FOUND)
    assert (
        "native finds 12 of 20 defects under 10 px, half 4 of 20, quarter 0 of 20, tiled 12 of 20."
        in told
    )
    small = pair_of(pairs, "half", "defects", 10.0)
    # Eight frames in which native alone finds the small one: McNemar's 2 / 2 ** 8.
    assert small.p == pytest.approx(2 / 2**8)
    assert (small.n, small.units, small.is_shown) == (20, 20, True)
    assert small.difference == pytest.approx(-0.4)
    assert small.low is not None
    assert small.high is not None
    assert small.low < -0.4 < small.high < 0
    assert "half is worse in defects found, defects found under 10 px, pixel Dice than" in told
    assert "half finds fewer defects under 10 px than native: -0.40" in told


def test_equal_arms_are_no_difference_with_n_and_a_bound(tell: Callable[..., Told]) -> None:
    pairs, told = tell("native", "tiled")
    assert (
        "No difference between tiled and native can be shown with n = 60 defects in 20 defective "
        "and 20 good frames." in told
    )
    assert all(not pair.is_shown and pair.difference == 0 for pair in pairs)
    overkill = pair_of(pairs, "tiled", "overkill")
    assert overkill.low == pytest.approx(-0.139, abs=0.001)
    assert overkill.high == pytest.approx(0.139, abs=0.001)
    # Three defects a frame are no sixty coins: nothing is claimed of them.
    assert pair_of(pairs, "tiled", "defects").low is None


def test_frames_of_one_part_are_one_piece_of_evidence(tell: Callable[..., Told]) -> None:
    pairs, told = tell("native", "half", group_size=10)
    small = pair_of(pairs, "half", "defects", 10.0)
    assert (small.n, small.units, small.p) == (20, 2, 0.5)
    assert not small.is_shown
    assert "Paired by part" in told


def test_each_arm_is_told_by_what_it_costs_and_what_limits_it(tell: Callable[..., Told]) -> None:
    _, told = tell(*FOUND)
    assert "half: training took 0.30 of native's time, it judged 3.5 times as many frames" in told
    assert "5 % over 3 compared arms" in told
    assert "What the tiled arm shows a second are windows" in told
    assert "Memory was short" in told
    assert "(native 1 x 2, half 2 x 1, quarter 2 x 1, tiled 2 x 1)" in told


def test_a_reference_that_has_not_succeeded_is_compared_with_nothing() -> None:
    by_arm = {"half": ArmOutcomes(tuple(outcomes("half")))}
    results = {"half": arm_result(report("half"), by_arm["half"])}
    assert compare_arms(results, by_arm, "native") == []
    assert findings(results, [], "native") == []


def test_detectors_are_compared_by_boxes_and_not_by_pixels() -> None:
    arms = ("native", "half")
    reports = {arm: report(arm) for arm in arms}
    frames = {arm: outcomes(arm) for arm in arms}
    for arm, told in reports.items():
        of_detector(told, frames[arm])
    by_arm = {arm: ArmOutcomes(tuple(rows)) for arm, rows in frames.items()}
    results = {arm: arm_result(told, by_arm[arm]) for arm, told in reports.items()}
    assert [(result.dice, result.ap50) for result in results.values()] == [(None, 0.25)] * 2
    pairs = compare_arms(results, by_arm, "native")
    assert {pair.measure for pair in pairs} == {"escape", "overkill", "defects"}
    assert "half is worse in defects found" in findings(results, pairs, "native")[0]
    said = "\n".join(notes("passes", results, pairs, grouped=False))
    assert "intersection over union" in said
    assert "Dice" not in said
