"""The report as one HTML file that needs nothing beside it: no network, no script."""

import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from training.events import read_events
from training.report.blocks import RunRecord, Section
from training.report.box_sections import boxes
from training.report.gallery_sections import false_alarms, misses
from training.report.run_sections import model_name, norm_name, provenance, training
from training.report.score_sections import defects, pixels
from training.report.verdict_sections import (
    escape_and_overkill,
    reservations,
    thresholds,
    warnings,
)
from training.run_directory import RunDirectory, write_whole

if TYPE_CHECKING:
    from jinja2 import Template

# In the order of the page.  A task with figures of its own adds its function here.
SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    reservations,
    warnings,
    escape_and_overkill,
    defects,
    misses,
    false_alarms,
    pixels,
    boxes,
    thresholds,
    training,
    provenance,
)


def write_page(run: RunDirectory) -> None:
    """Draw ``report.html`` from the run's report, events and gallery.

    Side effects: the file appears whole or not at all; an older one is replaced.
    """
    report: dict[str, Any] = json.loads(run.report.read_bytes())
    pictures = {path.name: path.read_bytes() for path in run.gallery.glob("*.webp")}
    write_whole(run.page, render_page(RunRecord(report, read_events(run.events), pictures)))


def render_page(run: RunRecord) -> str:
    """Return the page; sections of which the run knows nothing are left out."""
    built = (build(run) for build in SECTIONS)
    return _template().render(
        model=model_name(run.report),
        norm=norm_name(run.report),
        digest=run.report.get("dataset", {}).get("digest", ""),
        when=next((str(event.get("time", "")) for event in reversed(run.events)), ""),
        statements=run.report.get("statements", []),
        sections=[section for section in built if section is not None],
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("training.report", "."),
        # Names of classes and frames are anybody's, and the template's own name ends in .jinja.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["firm"] = _firm
    return environment.get_template("page.html.jinja")


def _firm(text: str) -> str:
    """Keep a number and its unit on one line."""
    return text.replace(" %", "\u00a0%").replace(" px", "\u00a0px")
