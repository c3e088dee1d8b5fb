"""Escape and overkill by frame and by part, with their denominators."""

from hypothesis import given, settings
from hypothesis import strategies as st

from models import ClassThreshold, OperatingPoint
from training.threshold_ladder import CHOSEN_RUNG, OFFSETS
from training.verdict_rates import VerdictCounts

FRAMES = st.lists(
    st.tuples(st.sampled_from("abcde"), st.booleans(), st.integers(0, len(OFFSETS))), max_size=30
)
POINT = OperatingPoint(classes={"pit": ClassThreshold(threshold=0.4)})


def counted(frames: list[tuple[str, bool, int]]) -> VerdictCounts:
    counts = VerdictCounts()
    for part, is_defective, reached in frames:
        counts.add(part, is_defective=is_defective, reached=reached)
    return counts


@settings(deadline=None)
@given(FRAMES)
def test_a_part_is_bad_if_any_frame_is_and_each_rate_has_its_own_denominator(
    frames: list[tuple[str, bool, int]],
) -> None:
    counts = counted(frames)
    curve = counts.curve(POINT)
    parts = {part: [f for f in frames if f[0] == part] for part, _, _ in frames}
    for rung, entry in enumerate(curve):
        for key, units in (("frames", [[frame] for frame in frames]), ("parts", parts.values())):
            verdicts = [
                (any(bad for _, bad, _ in unit), any(reached > rung for *_, reached in unit))
                for unit in units
            ]
            escape, overkill = entry[key]["escape"], entry[key]["overkill"]
            assert escape["events"] == sum(bad and not rejected for bad, rejected in verdicts)
            assert escape["n"] == sum(bad for bad, _ in verdicts)
            assert overkill["events"] == sum(rejected and not bad for bad, rejected in verdicts)
            assert overkill["n"] == sum(not bad for bad, _ in verdicts)
    chosen = curve[CHOSEN_RUNG]
    assert chosen["is_chosen"]
    assert chosen["thresholds"] == {"pit": 0.4}
    assert chosen["frames"]["escape"] == counts.frames.escape()
    assert chosen["parts"] == {key: counts.by_part()[key] for key in ("escape", "overkill")}


def test_higher_thresholds_let_more_through_and_reject_less() -> None:
    curve = counted([("a", True, 3), ("b", True, 9), ("c", False, 5)]).curve(POINT)
    escapes = [entry["frames"]["escape"]["events"] for entry in curve]
    overkill = [entry["frames"]["overkill"]["events"] for entry in curve]
    assert escapes == sorted(escapes)
    assert overkill == sorted(overkill, reverse=True)
    assert (escapes[0], escapes[-1], overkill[0], overkill[-1]) == (0, 2, 1, 0)


def test_without_good_or_defective_parts_no_rate_is_made_up() -> None:
    empty = counted([]).by_part()
    assert empty["parts"] == 0
    assert empty["escape"]["rate"] is None
    only_bad = counted([("a", True, 0)]).by_part()
    assert only_bad["overkill"]["rate"] is None
    assert only_bad["escape"] == {"events": 1, "n": 1, "rate": 1.0, "low": 0.025, "high": 1.0}
