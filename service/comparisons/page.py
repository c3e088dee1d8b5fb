"""A comparison as one HTML file that needs nothing beside it: no network, no script."""

from service.comparisons.findings import MEASURES, size_text
from service.comparisons.resources import ComparisonResource, PairResource, Rate
from service.html_pages import page_template


def render_page(comparison: ComparisonResource) -> str:
    """Return the comparison as HTML; it looks again by itself until every arm has ended."""
    finished = [arm for arm in comparison.arms if arm.result is not None]
    sizes = finished[0].result.recall_by_size if finished and finished[0].result else ()
    return page_template("service.comparisons", "comparison_page.html.jinja").render(
        comparison=comparison,
        finished=finished,
        sizes=[size_text(size.from_px, size.below_px) or "of any size" for size in sizes],
        measures=MEASURES,
        size_text=size_text,
        rate_text=_rate_text,
        number=_number,
        interval_text=_interval_text,
    )


def _rate_text(rate: Rate) -> str:
    if rate.rate is None or rate.low is None or rate.high is None:
        return "none to judge by"
    return f"{rate.events} of {rate.n} ({100 * rate.low:.0f} to {100 * rate.high:.0f} %)"


def _number(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _interval_text(pair: PairResource) -> str:
    """Return the interval of a difference, or why there is none."""
    if pair.low is not None and pair.high is not None:
        return f"{pair.low:+.3f} to {pair.high:+.3f}"
    if pair.units == 0:
        return "none to judge by"
    return "none: a single unit" if pair.units == 1 else "none: no unit differs"
