"""The smoke run of the data benchmarks writes a complete page."""

from pathlib import Path

import pytest

from benchmarks.data.__main__ import main
from benchmarks.data.page import PAGE
from benchmarks.data.rounds import measure_rounds, ratio


@pytest.mark.slow
def test_a_quick_run_of_everything_writes_a_complete_page(tmp_path: Path) -> None:
    results = tmp_path / "data.json"
    assert main(["all", "--quick", "--results", str(results)]) == 0
    page = results.with_suffix(".md").read_text()
    sections = page.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == list(PAGE.titles.values())
    for section, rows in zip(sections, (4, 6, 5), strict=True):
        assert "load average" in section
        assert "--quick" in section
        table = [line for line in section.splitlines() if line.startswith("|")]
        assert len(table) >= 2 + rows
        assert all(line.count("|") == table[0].count("|") for line in table)
        assert "nan" not in section
    assert "Freezing 200 frames took" in page


def test_a_page_names_what_was_not_measured() -> None:
    assert PAGE.render({}).count("Not measured") == len(PAGE.titles)


def test_arms_take_turns_and_their_warm_up_is_left_out() -> None:
    order: list[str] = []
    seconds = measure_rounds(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_a_ratio_compares_neighbours_in_time() -> None:
    seconds = {"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 2.0]}
    assert ratio(seconds, "a", "b") == pytest.approx({"low": 2.0, "median": 2.0, "high": 2.5})
