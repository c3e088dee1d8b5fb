"""Threads or worker processes: frames a second from storage to what training takes.

``python -m benchmarks.loading`` draws frames, reads them several times each way in one run and
prints a table; the two ways take turns, so that a busy machine slows both.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from torch.utils.data import DataLoader

from data import (
    AugmentationSpec,
    Draw,
    FrameCache,
    FrameDataset,
    Manifest,
    SplitSpec,
    assign_splits,
    import_folder,
)
from data.flaws import CLASSES
from data.loader import prefetch
from data.synthetic import write_dataset


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width-px", type=int, default=2500)
    parser.add_argument("--height-px", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "frames"
        root.mkdir()
        write_dataset(
            root,
            count=arguments.frames,
            seed=0,
            width_px=arguments.width_px,
            height_px=arguments.height_px,
        )
        imported = import_folder(root, classes=CLASSES)
        shares = SplitSpec(train=1.0, calibration=0.0, test=0.0)
        manifest = Manifest("segmentation", CLASSES, assign_splits(imported.items, shares))
        spec = AugmentationSpec()
        plain = FrameDataset(manifest, root, "train", seed=0, augmentation=spec)
        cache = FrameCache(Path(folder) / "decoded", 8 * 1024**3, _print_warning)
        cached = FrameDataset(manifest, root, "train", seed=0, augmentation=spec, cache=cache)
        _measure(plain, cached, arguments.rounds, arguments.workers)
    return 0


def _measure(plain: FrameDataset, cached: FrameDataset, rounds: int, workers: int) -> None:
    keys = [(1 + index, Draw(frame)) for index in range(rounds) for frame in range(len(plain))]
    best: dict[str, float] = {}
    for index in range(len(cached)):
        cached.frame(index, 0)
    processes = DataLoader(
        plain,
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        # As the service would have to start them: a fork of a process with threads may hang.
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    # Starting the processes is not counted: it happens once a run.
    _seconds(processes)
    for _ in range(3):
        for way, frames in (
            ("one thread, no prefetching", prefetch(plain.__getitem__, keys, workers=0, ahead=1)),
            (f"{workers} threads", prefetch(plain.__getitem__, keys, workers=workers, ahead=4)),
            (f"{workers} processes", processes),
            (
                f"{workers} threads, decoded cache",
                prefetch(cached.__getitem__, keys, workers=workers, ahead=4),
            ),
        ):
            best[way] = min(best.get(way, float("inf")), _seconds(frames))
    slowest = best["one thread, no prefetching"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print("| way | frames a second | of one thread's |")
    print("|---|---|---|")
    for way, seconds in best.items():
        print(f"| {way} | {len(keys) / seconds:.1f} | {slowest / seconds:.2f} |")


def _seconds(frames: Iterable[object]) -> float:
    began_s = time.perf_counter()
    for _ in frames:
        pass
    return time.perf_counter() - began_s


def _print_warning(code: str, detail: str) -> None:
    print(f"{code}: {detail}")


if __name__ == "__main__":
    raise SystemExit(main())
