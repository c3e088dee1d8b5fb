"""The page of the line's side: a section a benchmark, written from one file of results."""

from pathlib import Path

from benchmarks.results_page import ResultsPage

PAGE = ResultsPage(
    program="benchmarks.serve",
    results=Path("docs/benchmarks/serve.json"),
    quick_results=Path("benchmark-results/serve-quick.json"),
    head="""# The line's side, measured

Written by `make benchmark-serve` (`python -m benchmarks.serve COMMAND`). Everything that a section
compares took turns in one run; times alone hold for the machine and its load. Models swapped under
load have a page of their own: [serve-load.md](serve-load.md).""",
    titles={
        "latency": "One client, frame after frame",
        "runtimes": "Runtimes",
        "runtimes-wide": "Runtimes of a wider network",
    },
)
