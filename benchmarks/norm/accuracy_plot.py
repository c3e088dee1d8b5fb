"""Score over batch size, one picture a set."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.norm.accuracy_tables import Entries, Estimate, cell_scores, estimate
from benchmarks.norm.protocol import SETS, Cell

# Okabe and Ito's colours, told apart under every common colour blindness; marks repeat later.
COLOURS = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00"),
    *("#0072B2", "#CC79A7", "#7F7F7F", "#F0E442"),
)
MARKERS = "osD^v<>PX"
SIZE_INCH = (10.0, 4.6)
DOTS_PER_INCH = 100


class MissingLibraryError(Exception):
    """A library that only the plots need is not installed."""


def draw_set(set_name: str, methods: Sequence[str], entries: Entries, path: Path) -> None:
    """Write one PNG: a panel without accumulation, a panel with it, a line a method.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            "the plots need matplotlib; install the 'dev' extra or give --no-plots"
        ) from error
    with mpl.rc_context({"font.size": 11}):
        figure = Figure(figsize=SIZE_INCH, layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        spec = SETS[set_name]
        for panel, accumulate in zip(panels, (False, True), strict=True):
            for index, method in enumerate(methods):
                points = _points(set_name, method, entries, accumulate=accumulate)
                # A little shift keeps the error bars of one batch apart.
                shift = 1 + 0.025 * (index - (len(methods) - 1) / 2)
                panel.errorbar(
                    [batch * shift for batch, _ in points],
                    [value.mean for _, value in points],
                    yerr=[value.standard_error or 0.0 for _, value in points],
                    label=method,
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="-" if index < len(COLOURS) else "--",
                    capsize=3,
                )
            panel.set_xscale("log", base=2)
            panel.set_xticks(spec.batches, [str(batch) for batch in spec.batches])
            # Fixed, so that sets and half-finished results look alike.
            panel.set_xlim(min(spec.batches) / 1.2, max(spec.batches) * 1.2)
            panel.minorticks_off()
            panel.set_xlabel("images in a batch")
            panel.grid(alpha=0.3)
            panel.set_title(
                f"a step every {spec.images_per_step} images" if accumulate else "a step a batch"
            )
        panels[0].set_ylabel("test average precision")
        figure.suptitle(set_name)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, dpi=DOTS_PER_INCH)


def _points(
    set_name: str, method: str, entries: Entries, *, accumulate: bool
) -> list[tuple[int, Estimate]]:
    """Return batch size and score of each cell that has one."""
    cells = [Cell(set_name, method, batch, accumulate) for batch in SETS[set_name].batches]
    scores = [(cell.batch, cell_scores(cell, entries)) for cell in cells]
    return [
        (batch, estimate(list(found.by_seed.values())))
        for batch, found in scores
        if found is not None
    ]
