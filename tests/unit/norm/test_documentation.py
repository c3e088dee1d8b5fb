"""The guide's examples run and print what it says."""

import doctest
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "norm.md"


def test_the_examples_of_the_guide_print_what_they_say() -> None:
    result = doctest.testfile(str(GUIDE), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0
