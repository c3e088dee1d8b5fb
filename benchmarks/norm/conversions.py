"""What `norm.convert_batchnorm` makes of common segmentation and detection networks.

``python -m benchmarks.norm conversions`` converts each network to cross-iteration batch
normalization and writes a table: every normalization by class, how many were converted, and why the
others were left. Weights are random and inputs small; nothing is downloaded.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from norm import NormError, convert_batchnorm

OUT = Path("docs/benchmarks/norm-conversions.md")
SIDE_PX = 128
SEGMENTATION_LIBRARY = "segmentation_models_pytorch"
ARCHITECTURES = ("Unet", "FPN", "DeepLabV3Plus")
# "tu-" names are timm's networks; these spellings are the library's current ones.
ENCODERS = (
    "resnet18",
    "resnet50",
    "efficientnet-b0",
    "tu-mobilenetv3_small_100",
    "tu-convnext_tiny",
)
DETECTORS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
)
# Detectors resize what they are given; small frames are enough here.
SMALL: dict[str, Any] = {"min_size": SIDE_PX, "max_size": SIDE_PX}
CLASSES = 91
NORMALIZATION = re.compile(r"Norm(Act)?(\dd)?$")
_INTRODUCTION = (
    'Each network was converted with `convert_batchnorm(model, example_input, kind="cbn")`. Every '
    "normalization layer is counted, also those that are no batch normalization. A frozen backbone "
    "is what the builders make along with pretrained weights. Weights are random."
)
UNREPORTED = "the report does not name it, which is a defect of `norm`"


@dataclass(frozen=True)
class Subject:
    """A network to convert: its name in the table, how to build it, and what to run it on."""

    name: str
    build: Callable[[], nn.Module]
    example_input: Any


@dataclass(frozen=True)
class Row:
    """What became of one network.

    Attributes:
        name: The network.
        normalizations: Normalization layers by class, before.
        converted: How many were converted.
        reasons: The layers that were left, by class and reason.
        refusal: Why there is nothing to count, or "".
        failed: Whether it was `norm` that could not do it.
    """

    name: str
    normalizations: Counter[str] = field(default_factory=Counter)
    converted: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusal: str = ""
    failed: bool = False

    @property
    def left(self) -> int:
        """How many normalization layers were left as they were."""
        return self.reasons.total()


def segmentation_subjects() -> Iterator[Subject]:
    """Yield every architecture with every encoder.

    Raises:
        ModuleNotFoundError: The library is not installed.
    """
    import segmentation_models_pytorch as smp

    image = torch.zeros(1, 3, SIDE_PX, SIDE_PX)
    for architecture in ARCHITECTURES:
        for encoder in ENCODERS:
            build = partial(getattr(smp, architecture), encoder, encoder_weights=None)
            yield Subject(f"{architecture}, {encoder}", build, image)


def detection_subjects() -> Iterator[Subject]:
    """Yield torchvision's detectors, those with frozen statistics, and one with a shared head."""
    images = ([torch.zeros(3, SIDE_PX, SIDE_PX)],)
    for name in DETECTORS:
        # SSDlite resizes to the 320 px of its name and refuses another size.
        size = {} if name.startswith("ssdlite") else SMALL
        builder = getattr(detection, name)
        yield Subject(name, partial(builder, weights=None, weights_backbone=None, **size), images)
    for name, build in (
        ("fasterrcnn_resnet50_fpn, frozen backbone", _frozen_faster_rcnn),
        ("fasterrcnn_mobilenet_v3_large_320_fpn, frozen backbone", _frozen_faster_rcnn_mobilenet),
        ("retinanet_resnet50_fpn, frozen backbone", _frozen_retinanet),
        ("fcos_resnet50_fpn, frozen backbone", _frozen_fcos),
        ("retinanet_resnet50_fpn, BatchNorm2d in its head", _retinanet_with_normalized_head),
    ):
        yield Subject(name, build, images)


def _frozen_faster_rcnn() -> nn.Module:
    # The builders freeze a backbone only along with downloading its weights, so it is put together.
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
    )
    model: nn.Module = detection.FasterRCNN(backbone, CLASSES, **SMALL)
    return model


def _frozen_faster_rcnn_mobilenet() -> nn.Module:
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=FrozenBatchNorm2d
    )
    # As in the builder: one set of sizes for each of the three maps.
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
    model: nn.Module = detection.FasterRCNN(
        backbone, CLASSES, rpn_anchor_generator=anchors, **SMALL
    )
    return model


def _one_stage_backbone(norm_layer: Callable[..., nn.Module]) -> nn.Module:
    backbone: nn.Module = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=norm_layer,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return backbone


def _frozen_retinanet() -> nn.Module:
    model: nn.Module = detection.RetinaNet(_one_stage_backbone(FrozenBatchNorm2d), CLASSES, **SMALL)
    return model


def _frozen_fcos() -> nn.Module:
    model: nn.Module = detection.FCOS(_one_stage_backbone(FrozenBatchNorm2d), CLASSES, **SMALL)
    return model


def _retinanet_with_normalized_head() -> nn.Module:
    backbone = _one_stage_backbone(nn.BatchNorm2d)
    # The default generator of RetinaNet makes nine anchors a position.
    head = RetinaNetHead(256, 9, CLASSES, norm_layer=nn.BatchNorm2d)
    model: nn.Module = detection.RetinaNet(backbone, CLASSES, head=head, **SMALL)
    return model


def normalizations(model: nn.Module) -> dict[str, str]:
    """Return the class of each normalization layer, of whatever kind, by its name in the model."""
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if NORMALIZATION.search(type(module).__name__)
    }


def convert(subject: Subject) -> Row:
    """Build and convert one network and account for each of its normalization layers."""
    torch.manual_seed(0)
    try:
        model = subject.build()
    except (KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        return Row(subject.name, refusal=f"the library refuses: {_one_line(error)}")
    kinds = normalizations(model)
    try:
        _, report = convert_batchnorm(model, subject.example_input, kind="cbn")
    except NormError as error:
        return Row(subject.name, Counter(kinds.values()), refusal=_one_line(error), failed=True)
    converted = {entry.name for entry in report.converted}
    said = {entry.name: entry.reason for entry in report.left}
    reasons = Counter(
        (kind, anonymous(said.get(name, UNREPORTED)))
        for name, kind in kinds.items()
        if name not in converted
    )
    return Row(subject.name, Counter(kinds.values()), len(converted), reasons)


def anonymous(reason: str) -> str:
    """Return a reason without the names of modules, so that equal reasons can be counted.

    Names are quoted, but for those that a convolution "feeds".
    """
    reason = re.sub(r" feeds .*", " feeds several", reason)
    return re.sub(r"'[^']+'", "'…'", reason)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a markdown table, and under it the reasons that they refer to."""
    lines = [
        "| network | normalizations | converted | left (reason) |",
        "|---|---|---:|---|",
    ]
    numbers: dict[str, int] = {}
    for row in rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row.normalizations.items()))
        left = []
        for (kind, reason), count in sorted(row.reasons.items()):
            number = numbers.setdefault(reason, len(numbers) + 1)
            left.append(f"{count} {kind} ({number})")
        outcome = f"| {row.refusal}" if row.refusal else f"{row.converted} | {', '.join(left)}"
        lines.append(f"| {row.name} | {kinds} | {outcome} |")
    if numbers:
        lines.append("")
    return "\n".join(lines + [f"{number}. {reason}" for reason, number in numbers.items()])


def page(sections: Sequence[tuple[str, str]]) -> str:
    """Return the whole page from titles and bodies."""
    lines = [
        "# What converts",
        "",
        "```sh",
        "python -m benchmarks.norm conversions  # writes this page",
        "```",
        "",
        f"{_INTRODUCTION} {_versions()}.",
    ]
    for title, body in sections:
        lines += ["", f"## {title}", "", body]
    return "\n".join(lines) + "\n"


def _versions() -> str:
    found = []
    for package in ("torch", "torchvision", "timm", "segmentation-models-pytorch"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    return ", ".join(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument("--out", type=Path, default=OUT, help=f"the page (default {OUT})")


def run(arguments: argparse.Namespace) -> int:
    """Convert every network, print and write the table; return 1 if `norm` failed on one."""
    failed = False
    sections = []
    for title, subjects in (
        ("Segmentation (segmentation-models-pytorch)", segmentation_subjects),
        ("Detection (torchvision)", detection_subjects),
    ):
        try:
            rows = [convert(subject) for subject in subjects()]
        except ModuleNotFoundError as error:
            if error.name != SEGMENTATION_LIBRARY:
                raise
            sections.append((title, f"Left out: {SEGMENTATION_LIBRARY} is not installed."))
            continue
        failed = failed or any(row.failed for row in rows)
        sections.append((title, table(rows)))
    text = page(sections)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    if failed:
        print("norm failed on at least one network; its row says how", file=sys.stderr)
    return int(failed)
