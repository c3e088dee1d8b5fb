"""When two answers on one frame agree."""

from typing import Any

import pytest

from service.serving.agreement import Agreement, compare


def answer(*defects: tuple[str, list[int]]) -> dict[str, Any]:
    return {
        "verdict": "NG" if defects else "OK",
        "defects": [{"class": name, "box": box} for name, box in defects],
    }


PIT, NEAR, TOUCHING, FAR = [10, 10, 4, 4], [13, 13, 9, 2], [14, 10, 4, 4], [40, 40, 4, 4]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (answer(), answer(), Agreement(True, True)),
        (answer(), answer(("pit", PIT)), Agreement(False, False)),
        (answer(("pit", PIT)), answer(("pit", NEAR)), Agreement(True, True)),
        # Boxes side by side share no pixel.
        (answer(("pit", PIT)), answer(("pit", TOUCHING)), Agreement(True, False)),
        (answer(("pit", PIT)), answer(("dent", PIT)), Agreement(True, False)),
        # One says a defect more than the other.
        (answer(("pit", PIT), ("pit", FAR)), answer(("pit", NEAR)), Agreement(True, False)),
        # One sees as two what the other sees as one.
        (
            answer(("pit", PIT), ("pit", NEAR)),
            answer(("pit", [9, 9, 20, 20])),
            Agreement(True, True),
        ),
    ],
)
def test_answers_agree_if_verdicts_are_the_same_and_each_defect_meets_one_of_its_class(
    first: dict[str, Any], second: dict[str, Any], expected: Agreement
) -> None:
    assert compare(first, second) == expected
    assert compare(second, first) == expected
    assert expected.is_complete == (expected.same_verdict and expected.same_defects)
