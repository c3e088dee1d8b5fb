"""How well each form of slope predicts the variance of past images at today's weights.

``python -m benchmarks.norm slopes`` trains the accuracy benchmark's network, an image and a step at
a time, with the default normalization. Every so many steps it takes past inputs of every
convolution, moves their variance from the weights of their own step to today's with each form of
slope, and compares that with what today's weights really make of them. All forms see the same
training. It writes a page of tables.
"""

import argparse
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.norm.frames import MissingDatasetError
from benchmarks.norm.network import build_network
from benchmarks.norm.processor import processor_name
from benchmarks.norm.protocol import SETS, Cell, Run
from benchmarks.norm.single_run import convert, train
from benchmarks.norm.splits import load_set
from norm.factored_window import FactoredWindow
from norm.functional import batch_statistics
from norm.observation import ForwardPass
from norm.window import RingWindow, Window

PAGE = Path("docs/benchmarks/norm-slopes.md")
PATCH_SETS = tuple(name for name, spec in SETS.items() if spec.patches)
AGES = (1, 3, 7)
POOLED = "mean of 1 to 7"
COLUMNS = (*(f"{age} steps" for age in AGES), POOLED)
# A rate in the middle of the accuracy benchmark's grid, and often the chosen one.
BASE_RATE = 1e-3
SKIPPED_PASSES = 32
# A channel without variance has no relative error.
SMALLEST_VARIANCE = 1e-8

MakeWindow = Callable[[Tensor, int], Window]


def _whole(positions: int | None) -> MakeWindow:
    return lambda weight, groups: RingWindow(1, weight, groups, slope_positions=positions)


def _factored(rank: int) -> MakeWindow:
    return lambda weight, groups: FactoredWindow(1, weight, groups, rank=rank)


FORMS: Mapping[str, MakeWindow] = {
    "no step": lambda weight, groups: RingWindow(1, weight, groups, rho=0.0),
    "exact slope": _whole(None),
    "64 positions": _whole(64),
    **{f"rank {rank}": _factored(rank) for rank in (4, 8, 16, 32)},
}


class Past(NamedTuple):
    """What a convolution once saw, and the weight it ran with."""

    x: Tensor
    weight: Tensor


def predicted_and_true(
    convolution: nn.Conv2d, past: Past, make_window: MakeWindow
) -> tuple[Tensor, Tensor]:
    """Return what a form predicts for a past variance at today's weight, and what it is.

    Args:
        convolution: With today's weight; no hook of it runs.
        past: A past input and weight.
        make_window: Makes the window that moves the variance.

    Returns:
        Variances, (C,) each.
    """
    bare = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # It is a pair.
        convolution.stride,  # type: ignore[arg-type]
        convolution.padding,  # type: ignore[arg-type]
        convolution.dilation,  # type: ignore[arg-type]
        convolution.groups,
        bias=False,
    )
    window = make_window(convolution.weight, convolution.groups)
    for weight in (past.weight, convolution.weight.detach()):
        bare.weight = nn.Parameter(weight, requires_grad=False)
        y = bare(past.x)
        statistics = batch_statistics(y)
        estimates = window.consult(ForwardPass(bare, past.x, y, statistics, "declared"))
    return estimates.variances[0], statistics.variance


def relative_errors(predicted: Tensor, true: Tensor) -> Tensor:
    """Return the absolute relative errors of the channels that have a variance."""
    varied = true > SMALLEST_VARIANCE
    return (predicted / true - 1).abs()[varied]


class Probe:
    """Forward hooks on convolutions that compare the forms every `every` passes.

    Attributes:
        errors: Errors by column and form, one tensor a comparison.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.errors: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self._past: dict[nn.Module, deque[Past]] = {}
        self._passes: dict[nn.Module, int] = defaultdict(int)

    def watch(self, convolution: nn.Conv2d) -> None:
        """Compare on this convolution too."""
        self._past[convolution] = deque(maxlen=max(AGES))
        convolution.register_forward_hook(self._after)

    @torch.no_grad()
    def _after(self, convolution: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(convolution, nn.Conv2d)  # `watch` takes no other.
        past = self._past[convolution]
        self._passes[convolution] += 1
        passes = self._passes[convolution]
        if passes > SKIPPED_PASSES and passes % self.every == 0:
            for name, make_window in FORMS.items():
                pairs = [predicted_and_true(convolution, then, make_window) for then in past]
                for age in AGES:
                    self.errors[f"{age} steps", name].append(relative_errors(*pairs[-age]))
                pooled = [torch.stack(values).mean(0) for values in zip(*pairs, strict=True)]
                self.errors[POOLED, name].append(relative_errors(*pooled))
        past.append(Past(args[0].detach(), convolution.weight.detach().clone()))


def measure(set_name: str, datasets: Path, every: int) -> dict[tuple[str, str], Tensor]:
    """Train on a set of patches and return all relative errors by column and form."""
    run = Run(Cell(set_name, "cbn", 1, accumulate=False), seed=0, base_lr=BASE_RATE)
    images = load_set(set_name, datasets)["train"]
    network: nn.Module = build_network(SETS[set_name].channels, patches=True, seed=run.seed)
    network = convert(network, run, images)
    probe = Probe(every)
    for module in network.modules():
        # Those with a bias have no normalization behind them.
        if isinstance(module, nn.Conv2d) and module.bias is None:
            probe.watch(module)
    train(network, run, images)
    return {key: torch.cat(errors) for key, errors in probe.errors.items()}


def render(errors: Mapping[str, Mapping[tuple[str, str], Tensor]], every: int) -> str:
    """Return the page."""
    lines = [
        "# How well slopes predict a past variance",
        "",
        "```sh",
        f"python -m benchmarks.norm slopes --sets {' '.join(errors)} --every {every}",
        "```",
        "",
        (
            f"The accuracy benchmark's network under `cbn`, batch 1, base rate {BASE_RATE:g}, seed "
            f"0. Every {every} steps the inputs that each convolution saw in the 7 steps before "
            "are run again with today's weights, and the variance of each channel is compared with "
            "the one that was measured then and moved by each form of slope. The figures are "
            "medians over channels, layers and steps of |predicted / true - 1|, in percent, and in "
            "brackets the upper quartiles. `rank` is `slope_rank`, here in every layer; `no step` "
            "is `rho` = 0. The last column compares the mean of the seven variances, which is what "
            "a window pools: the noise of samples partly cancels there. Patches of 64 px leave 16 "
            "positions at the lowest resolution, where most of the channels are: there rank 16 is "
            "exact."
        ),
        "",
        f"{processor_name()}, PyTorch {torch.__version__}.",
    ]
    for set_name, by_form in errors.items():
        count = len(by_form[COLUMNS[0], "no step"])
        lines += ["", f"## {set_name}", "", f"{count:,} comparisons a figure.", ""]
        lines.append("| | " + " | ".join(COLUMNS) + " |")
        lines.append("|---|" + "---:|" * len(COLUMNS))
        for name in FORMS:
            cells = [_cell(by_form[column, name]) for column in COLUMNS]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(errors: Tensor) -> str:
    middle, upper = errors.quantile(torch.tensor([0.5, 0.75])).mul(100).tolist()
    return f"{middle:.2f} ({upper:.2f})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--datasets", type=Path, default=Path("../shared/datasets"))
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--sets", nargs="+", choices=PATCH_SETS, default=list(PATCH_SETS))
    parser.add_argument("--every", type=int, default=64, help="steps between two comparisons")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the page and return the exit status: 2 for bad input."""
    sets: Sequence[str] = arguments.sets
    try:
        errors = {name: measure(name, arguments.datasets, arguments.every) for name in sets}
    except MissingDatasetError as error:
        print(error, file=sys.stderr)
        return 2
    arguments.page.write_text(render(errors, arguments.every))
    print(f"wrote {arguments.page}")
    return 0
