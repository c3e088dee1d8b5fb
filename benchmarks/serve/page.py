"""The page of the line's side: a section a benchmark, written from one file of results."""

import argparse
from pathlib import Path

import torch

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
        "latency --device cuda": "One client, frame after frame, on a GPU",
        "busy": "Beside a busy thread of the API",
        "runtimes": "Runtimes",
        "runtimes --device cuda": "Runtimes on a GPU",
        "runtimes-wide": "Runtimes of a wider network",
        "runtimes-wide --device cuda": "Runtimes of a wider network on a GPU",
    },
)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says where a model is served."""
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the model is served; cuda where there is one, unless told",
    )


def section_of(command: str, device: torch.device) -> str:
    """Return a benchmark's section: a GPU's figures stand beside the processor's."""
    return f"{command} --device cuda" if device.type == "cuda" else command


def accelerator(device: torch.device) -> str | None:
    """Return the name of the GPU that a benchmark served on; None if it was none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
