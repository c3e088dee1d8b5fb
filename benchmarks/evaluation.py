"""What judging a test frame costs beside asking the model about it.

``python -m benchmarks.evaluation`` draws frames, asks an untrained network of the default kind
about each, and has scores counted that look like a trained network's: high in defects, a haze of
low ones elsewhere.  It prints seconds a frame for both, their ratio, and what is kept in memory.
"""

import argparse
import pickle
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.quartiles import quartiles
from data import Frame
from data.flaws import CLASSES
from data.synthetic import draw_frame
from models import (
    Bundle,
    BundleInfo,
    ClassThreshold,
    FrozenModel,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
)
from training.evaluation import Judgement
from training.gallery import Gallery


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--width", type=int, default=2500)
    parser.add_argument("--height", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    frames = [_draw(seed, arguments.width, arguments.height) for seed in range(arguments.frames)]
    model = _untrained(CLASSES, arguments.device)
    chosen = ClassThreshold(threshold=0.5, min_area_px=8)
    point = OperatingPoint(classes=dict.fromkeys(CLASSES, chosen))
    judgement = Judgement(CLASSES, point, {}, Gallery())
    asked_s, counted_s = [], []
    for frame in frames:
        began_s = time.perf_counter()
        model.probabilities(frame.pixels)
        asked_s.append(time.perf_counter() - began_s)
        scores = _plausible_scores(frame)
        began_s = time.perf_counter()
        judgement.add(frame, scores)
        counted_s.append(time.perf_counter() - began_s)
    ratios = [counted / asked for counted, asked in zip(counted_s, asked_s, strict=True)]
    size = f"{arguments.width}x{arguments.height}, {len(CLASSES)} classes, {model.device}"
    print(f"| {size} | lower quartile | median | upper quartile |")
    print("|---|---|---|---|")
    for name, values in (
        ("asking the model, s", asked_s),
        ("counting, s", counted_s),
        ("counting / asking", ratios),
    ):
        spread = quartiles(values)
        print(f"| {name} | {spread['low']:.3f} | {spread['median']:.3f} | {spread['high']:.3f} |")
    kept = len(pickle.dumps(judgement)) / 2**20
    print(f"\nKept after {len(frames)} frames, pictures of the gallery included: {kept:.1f} MiB")


def _draw(seed: int, width_px: int, height_px: int) -> Frame:
    drawn = draw_frame(seed, width_px=width_px, height_px=height_px, defects=seed % 2 == 0)
    planes = [drawn.mask == index + 1 for index in range(len(drawn.classes))]
    mask = np.stack(planes, axis=2).astype(np.uint8)
    return Frame(f"frame {seed}", drawn.pixels[:, :, None], mask)


def _plausible_scores(frame: Frame) -> NDArray[np.float32]:
    """Return probabilities (K, H, W): defects stand out of a haze as coarse as a network's."""
    height, width, classes = frame.mask.shape
    rng = np.random.default_rng(len(frame.name))
    scores = []
    for index in range(classes):
        coarse = rng.normal(-7, 1.5, (height // 8, width // 8)).astype(np.float32)
        haze = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        defects = cv2.GaussianBlur(frame.mask[:, :, index].astype(np.float32), (0, 0), 3)
        scores.append(1 / (1 + np.exp(-(haze + 12 * defects))))
    return np.stack(scores).astype(np.float32)


def _untrained(classes: tuple[str, ...], device: str) -> FrozenModel:
    spec = ModelSpec()
    info = BundleInfo(
        classes=classes,
        model=spec,
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=spec.stride_px
        ),
        operating_point=OperatingPoint(classes={}),
        dataset_digest="0" * 64,
    )
    return FrozenModel(Bundle(info=info, network=build_network(info).eval()), device)


if __name__ == "__main__":
    main()
