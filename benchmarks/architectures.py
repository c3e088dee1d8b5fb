"""Every segmentation network that a job may ask for: its size, its arithmetic, what converts.

``python -m benchmarks.architectures`` builds each architecture with each encoder, converts it to
cross-iteration batch normalization, trains one step on a frame that is no multiple of any stride,
folds it and compares. It writes a table; a network that can't do all of it makes the exit status 1.
Weights are random and nothing is downloaded.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import (
    ARCHITECTURES,
    Architecture,
    ModelSpec,
    build_model,
    example_input,
    pad_to_multiple,
)
from norm import convert_batchnorm, fold_batchnorm

OUT = Path("docs/benchmarks/architectures.md")
FRAME_PX = (37, 70)
# A multiple of every stride.
COUNTED_SIDE_PX = 256
# Folding reorders float32 products.
TOLERANCE = 1e-3

_INTRODUCTION = """# Segmentation networks

```sh
python -m benchmarks.architectures  # writes this page; minutes on a CPU
```

Mono frames, one class. Parameters in millions. Arithmetic is thousand multiply-adds a pixel of the
frame in a forward pass, which is billions a million pixels. The finest stride is that of the finest
features which the encoder hands to the answer; frames are padded to a multiple of the other.
Converted are the normalizations that `norm` turned into CBN, left those that it did not, by kind;
`gn` and `ln` normalize each image by itself and have nothing to gain. Folded are those that went
into convolutions for serving.
"""
_HEADINGS = (
    "| encoder | parameters | arithmetic | finest stride | padded to | converted | left | folded |"
)


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        spec: What was asked for.
        parameters: How many.
        macs_per_pixel: Multiply-adds a pixel of the frame.
        converted: Normalizations that became CBN.
        left: The others, by kind.
        folded: Batch normalizations that went into convolutions.
        failure: What it could not do, or "".
    """

    spec: ModelSpec
    parameters: int = 0
    macs_per_pixel: float = 0.0
    converted: int = 0
    left: tuple[tuple[str, int], ...] = ()
    folded: int = 0
    failure: str = ""


def measure(spec: ModelSpec) -> Row:
    """Build, count, convert, train, fold and compare one network."""
    torch.manual_seed(0)
    network = build_model(spec, class_count=1, in_channels=1)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 1, COUNTED_SIDE_PX, COUNTED_SIDE_PX))
    # The counter counts a multiply-add as two operations.
    macs_per_pixel = counter.get_total_flops() / 2 / COUNTED_SIDE_PX**2

    network, report = convert_batchnorm(network, example_input(spec, 1), kind="cbn")
    padded = pad_to_multiple(torch.randn(1, 1, *FRAME_PX), spec.stride_px)
    logits = network.train()(padded)
    logits.sum().backward()
    with torch.no_grad():
        expected = network.eval()(padded).sigmoid()
        network, fold = fold_batchnorm(network, example_input(spec, 1))
        difference = float((network(padded).sigmoid() - expected).abs().max())
    failures = []
    if logits.shape[-2:] != padded.shape[-2:]:
        failures.append(f"answers {tuple(logits.shape[-2:])} for {tuple(padded.shape[-2:])}")
    if difference > TOLERANCE:
        failures.append(f"folding moves a probability by {difference:.1e}")
    return Row(
        spec=spec,
        parameters=parameters,
        macs_per_pixel=macs_per_pixel,
        converted=len(report.converted),
        left=tuple(sorted(Counter(entry.kind for entry in report.left).items())),
        folded=len(fold.folded),
        failure="; ".join(failures),
    )


def section(architecture: Architecture, rows: Sequence[Row]) -> str:
    """Return one architecture's rows as markdown."""
    lines = [
        f"## {architecture.name}",
        "",
        f"{architecture.summary[0].upper()}{architecture.summary[1:]}.",
        "",
        _HEADINGS,
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        left = row.failure or ", ".join(f"{count} {kind}" for kind, count in row.left)
        lines.append(
            f"| {row.spec.encoder} | {row.parameters / 1e6:.1f} | {row.macs_per_pixel / 1e3:.1f} | "
            f"{architecture.finest_stride_px(row.spec)} | {row.spec.stride_px} | {row.converted} | "
            f"{left} | {row.folded} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every network, print and write the page; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"the page (default {OUT})")
    parser.add_argument("--encoder", action="append", help="only this one; may be repeated")
    arguments = parser.parse_args(argv)
    sections, failed = [_INTRODUCTION], False
    for architecture in ARCHITECTURES.values():
        if architecture.task != "segmentation":
            continue
        rows = [
            measure(ModelSpec(architecture=architecture.name, encoder=encoder))
            for encoder in architecture.encoders
            if arguments.encoder is None or encoder in arguments.encoder
        ]
        failed = failed or any(row.failure for row in rows)
        sections.append(section(architecture, rows))
    text = "\n\n".join(part.rstrip("\n") for part in sections) + "\n"
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
