"""What a page is made of: sections of blocks that the template knows how to draw.

A further section is a function from `RunRecord` to `Section`, or to None where the run has nothing
for it, and its name in `training.report.page.SECTIONS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from training.report.plots import Drawing


@dataclass(frozen=True)
class RunRecord:
    """All that the page is drawn from.

    Attributes:
        report: ``report.json``.
        events: ``events.jsonl``.
        pictures: The gallery's files by name.
    """

    report: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, bytes]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The report's metrics; empty where there are none."""
        found: Mapping[str, Any] = self.report.get("metrics", {})
        return found

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """The report's curves and tables; empty in a report of another task."""
        found: Mapping[str, Any] = self.report.get("evaluation", {})
        return found


@dataclass(frozen=True)
class Sentences:
    """Paragraphs, or a list where there are several."""

    kind: ClassVar[str] = "sentences"
    texts: Sequence[str]
    is_list: bool = False


@dataclass(frozen=True)
class Facts:
    """Numbers that are read at a glance: value, then what it is."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first column names the row."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing with its caption."""

    drawing: Drawing
    caption: str


@dataclass(frozen=True)
class Plots:
    """Drawings side by side where there is room."""

    kind: ClassVar[str] = "plots"
    plots: Sequence[Plot]


@dataclass(frozen=True)
class Picture:
    """A picture with what it shows.

    Attributes:
        data_url: The picture itself.
        alt: Read out in its place.
        tag: One word in front of the caption; empty for none.
        is_wrong: Whether the tag is bad news.
        captions: Lines under it.
    """

    data_url: str
    alt: str
    tag: str
    is_wrong: bool
    captions: Sequence[str]


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


Block = Sentences | Facts | Table | Plots | Pictures


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading."""

    title: str
    blocks: Sequence[Block]
