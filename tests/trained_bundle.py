"""A bundle whose verdicts mean something: half of the frames it is made for are NG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models import (
    BundleInfo,
    ClassThreshold,
    FrozenModel,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
    load_bundle,
    write_bundle,
)

SPEC = ModelSpec(encoder="mobilenet_v3_small", encoder_depth=3, decoder_channels=(16, 8, 8))
CLASSES = ("pit", "dent")


def patched_frame(
    seed: int, bit_depth: Literal[8, 16] = 16, size: tuple[int, int] = (70, 101)
) -> NDArray[Any]:
    """A bright patch of some size on a noisy ground, of a size that no stride divides."""
    rng = np.random.default_rng(seed)
    unit = 1 if bit_depth == 8 else 257
    pixels = rng.normal(80, 8, size)
    side = int(rng.integers(0, 30))
    top, left = rng.integers(0, 40, 2)
    pixels[top : top + side, left : left + side] += rng.uniform(20, 120)
    return np.clip(unit * pixels, 0, 255 * unit).astype(np.uint8 if unit == 1 else np.uint16)


def write_trained(
    path: Path, frames: Sequence[NDArray[Any]], bit_depth: Literal[8, 16] = 16
) -> BundleInfo:
    """A network with running statistics far from their start; half of the frames are NG."""
    unit = 1.0 if bit_depth == 8 else 257.0
    info = BundleInfo(
        classes=CLASSES,
        model=SPEC,
        norm=NormSpec(kind="cbn"),
        preprocessing=Preprocessing(
            in_channels=1,
            bit_depth=bit_depth,
            mean=(80 * unit,),
            std=(25 * unit,),
            stride_px=SPEC.stride_px,
        ),
        operating_point=OperatingPoint(classes={name: ClassThreshold() for name in CLASSES}),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    network: Any = build_network(info).train()
    with torch.no_grad():
        for _ in range(5):
            network(2 * torch.randn(2, 1, 64, 64) + 1)
        network.segmentation_head[0].weight *= 6
    write_bundle(path, info, network.state_dict())
    model = FrozenModel(load_bundle(path), "cpu")
    peaks = [model.probabilities(frame).max(axis=(1, 2)) for frame in frames]
    # Between the two middle ones, so that no frame lies on a threshold.
    half = len(frames) // 2
    middle = np.sort(np.array(peaks), axis=0)[[half - 1, half]].mean(axis=0)
    thresholds = {
        name: ClassThreshold(threshold=float(value))
        for name, value in zip(CLASSES, middle, strict=True)
    }
    point = OperatingPoint(classes=thresholds)
    return write_bundle(
        path, info.model_copy(update={"operating_point": point}), network.state_dict()
    )
