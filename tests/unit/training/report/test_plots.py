"""Axes have round ticks, and whatever is drawn stays inside of the picture."""

import itertools

from defusedxml.ElementTree import fromstring
from hypothesis import given, settings
from hypothesis import strategies as st

from training.report.axes import HEIGHT, WIDTH, Axis, fitting_axis
from training.report.plots import Series, draw_plot

VALUES = st.floats(-1e6, 1e6)
SIZES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


@settings(deadline=None)
@given(SIZES | st.lists(VALUES, min_size=1, max_size=20), st.booleans())
def test_ticks_are_few_rising_and_inside(values: list[float], is_log: bool) -> None:
    axis = fitting_axis("x", values, is_log=is_log)
    ticks = axis.ticks()
    assert len(ticks) <= 8
    assert all(first < second for first, second in itertools.pairwise(ticks))
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


@settings(deadline=None)
@given(SIZES)
def test_a_logarithmic_axis_gives_equal_factors_equal_distances(values: list[float]) -> None:
    axis = Axis("x", 0.1, 1000.0, is_log=True)
    assert abs(axis.share(10) - 0.5) < 1e-9
    ordered = sorted(values)
    shares = [axis.share(value) for value in ordered]
    assert shares == sorted(shares)


@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12))
def test_every_point_and_interval_is_drawn_inside_of_the_picture(
    points: list[tuple[float, float]],
) -> None:
    intervals = [(y - 1, y + 1) for _, y in points]
    axes = Axis("x", -10, 10), Axis("y", 0, 1)
    series = [
        Series("a & b", points, intervals, highlight=(points[0], "<chosen>")),
        Series("bars", points, intervals, style="points"),
    ]
    drawing = draw_plot(series, *axes, title="<plot>")
    root = fromstring(drawing.svg)
    for element in root.iter():
        for name, limit in (("cx", WIDTH), ("cy", HEIGHT), ("x1", WIDTH), ("y2", HEIGHT)):
            assert -10 <= float(element.get(name, "0")) <= limit + 10
    for line in root.iter("polyline"):
        pairs = [pair.split(",") for pair in (line.get("points") or "").split()]
        assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in pairs)
    assert root.findtext("title") == "<plot>"
    assert [entry.name for entry in drawing.legend] == ["a & b", "bars"]
