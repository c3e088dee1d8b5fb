"""The page of the data room's speeds: a section a benchmark, written from one file of results."""

from pathlib import Path

from benchmarks.results_page import ResultsPage

PAGE = ResultsPage(
    program="benchmarks.data",
    results=Path("docs/benchmarks/data.json"),
    quick_results=Path("benchmark-results/data-quick.json"),
    head="""# The data room's speed

Written by `make benchmark-data` (`python -m benchmarks.data all`). Each ratio compares two things
that took turns in one run, after a warm-up; median, and in brackets the quartiles. Times alone hold
for the machine and its load.""",
    titles={
        "import": "Taking frames in",
        "decode": "Decoding and augmentation",
        "listing": "A small and a large data set",
    },
)
