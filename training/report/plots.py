"""Plots as inline SVG: built as an element tree, so that no name can become markup."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree as ET

from markupsafe import Markup

from training.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis

Point = tuple[float, float]
Style = Literal["line", "points"]

# Okabe and Ito's palette without its pale colours, which would not show on paper; dashes tell
# series apart in print.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a04f86", "#8a5a00", "#1f2933")
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_INK, _SOFT, _GRID = "#1f2933", "#52606d", "#e3e8ee"


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: For the legend and the tooltip.
        points: (x, y) in the axes' units.
        intervals: Lowest and highest y of each point; empty without intervals.
        style: A line with its intervals as a band, or points with their intervals as bars.
        highlight: A point that is ringed, and what it is.
    """

    name: str
    points: Sequence[Point]
    intervals: Sequence[Point] = ()
    style: Style = "line"
    highlight: tuple[Point, str] | None = None


@dataclass(frozen=True)
class Legend:
    """One entry: a name, and how its series is drawn."""

    name: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Drawing:
    """A plot that is ready for the page.

    Attributes:
        svg: The picture.
        legend: Empty for a single series.
    """

    svg: Markup
    legend: tuple[Legend, ...] = field(default=())


def draw_plot(series: Sequence[Series], x_axis: Axis, y_axis: Axis, title: str) -> Drawing:
    """Return a plot of some series over common axes.

    Args:
        series: In the order of their colours.
        x_axis: Horizontal.
        y_axis: Vertical.
        title: Read out in place of the picture.
    """
    root = ET.Element(
        "svg", {"viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "role": "img", "class": "plot"}
    )
    ET.SubElement(root, "title").text = title
    _draw_axes(root, x_axis, y_axis)
    for index, each in enumerate(series):
        _draw_series(root, each, _colour(index), _dash(index), x_axis, y_axis)
    legend = tuple(
        Legend(each.name, _colour(index), _dash(index)) for index, each in enumerate(series)
    )
    # The tree escapes text and attributes; nothing else enters the picture.
    svg = Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704
    return Drawing(svg, legend if len(series) > 1 else ())


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _dash(index: int) -> str:
    return _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _draw_axes(root: ET.Element, x_axis: Axis, y_axis: Axis) -> None:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    for tick in x_axis.ticks():
        x = x_axis.x(tick)
        _line(root, (x, top), (x, bottom), _GRID)
        _text(root, (x, bottom + 16), x_axis.text(tick), "middle")
    for tick in y_axis.ticks():
        y = y_axis.y(tick)
        _line(root, (left, y), (right, y), _GRID)
        _text(root, (left - 6, y + 4), y_axis.text(tick), "end")
    _line(root, (left, bottom), (right, bottom), _SOFT)
    _line(root, (left, top), (left, bottom), _SOFT)
    _text(root, ((left + right) / 2, HEIGHT - 6), x_axis.label, "middle", ink=_INK)
    middle = (top + bottom) / 2
    _text(root, (13, middle), y_axis.label, "middle", ink=_INK, turned=True)


def _draw_series(
    root: ET.Element, series: Series, colour: str, dash: str, x_axis: Axis, y_axis: Axis
) -> None:
    group = ET.SubElement(root, "g", {"stroke": colour, "fill": colour})
    ET.SubElement(group, "title").text = series.name
    places = [(x_axis.x(x), y_axis.y(y)) for x, y in series.points]
    if series.style == "line":
        _draw_band(group, series, x_axis, y_axis)
    else:
        _draw_bars(group, series, colour, x_axis, y_axis)
    if len(places) > 1:
        path = " ".join(f"{x:g},{y:g}" for x, y in places)
        attributes = {"points": path, "fill": "none", "stroke-width": "1.8"}
        ET.SubElement(group, "polyline", attributes | ({"stroke-dasharray": dash} if dash else {}))
    if series.style == "points" or len(places) == 1:
        for x, y in places:
            ET.SubElement(group, "circle", {"cx": f"{x:g}", "cy": f"{y:g}", "r": "3"})
    if series.highlight is not None:
        (x, y), what = series.highlight
        ring = {"cx": f"{x_axis.x(x):g}", "cy": f"{y_axis.y(y):g}", "r": "6", "fill": "none"}
        circle = ET.SubElement(group, "circle", {**ring, "stroke-width": "2.5"})
        ET.SubElement(circle, "title").text = what


def _draw_band(group: ET.Element, series: Series, x_axis: Axis, y_axis: Axis) -> None:
    if not series.intervals:
        return
    xs = [x_axis.x(x) for x, _ in series.points]
    lows = [(x, y_axis.y(low)) for x, (low, _) in zip(xs, series.intervals, strict=True)]
    highs = [(x, y_axis.y(high)) for x, (_, high) in zip(xs, series.intervals, strict=True)]
    path = " ".join(f"{x:g},{y:g}" for x, y in [*lows, *reversed(highs)])
    ET.SubElement(group, "polygon", {"points": path, "fill-opacity": "0.14", "stroke": "none"})


def _draw_bars(group: ET.Element, series: Series, colour: str, x_axis: Axis, y_axis: Axis) -> None:
    for (value, _), (low, high) in zip(series.points, series.intervals, strict=False):
        x = x_axis.x(value)
        _line(group, (x, y_axis.y(low)), (x, y_axis.y(high)), colour, width=1.5)
        for end in (low, high):
            _line(group, (x - 4, y_axis.y(end)), (x + 4, y_axis.y(end)), colour, width=1.5)


def _line(parent: ET.Element, start: Point, end: Point, colour: str, width: float = 1.0) -> None:
    places = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    attributes = {name: f"{value:g}" for name, value in places.items()}
    ET.SubElement(parent, "line", {**attributes, "stroke": colour, "stroke-width": f"{width:g}"})


def _text(
    parent: ET.Element,
    place: Point,
    text: str,
    anchor: str,
    *,
    ink: str = _SOFT,
    turned: bool = False,
) -> None:
    x, y = place
    attributes = {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor, "fill": ink}
    if turned:
        attributes["transform"] = f"rotate(-90 {x:g} {y:g})"
    ET.SubElement(parent, "text", attributes).text = text
