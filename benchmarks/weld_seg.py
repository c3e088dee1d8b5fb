"""Train on the real weld photos, print the scores beside trivial baselines, draw test overlays.

``python -m benchmarks.weld_seg`` trains at native size where there is a GPU; on a CPU on native
crops, evaluating whole frames all the same, and says so.  The data are read in place.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data import FrameDataset, Manifest, SplitSpec, assign_splits
from data.folder import import_folder
from models import FrozenModel, load_bundle

OVERLAYS = 10
SETTINGS: dict[str, dict[str, Any]] = {
    "cuda": {
        "model": {"encoder": "resnet34"},
        "resolution": {"mode": "native"},
        "batch_size": 2,
        "budget": {"max_epochs": 60},
        "early_stopping": {"patience_epochs": 20},
    },
    "cpu": {
        "model": {"encoder": "resnet18"},
        "resolution": {"mode": "crop", "height_px": 448, "width_px": 448, "defect_rate": 0.7},
        "batch_size": 2,
        "budget": {"max_epochs": 24},
        "early_stopping": None,
    },
}


def main() -> int:
    """Freeze a version, train, print the table and write the overlays; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=Path, default=Path("../shared/datasets"))
    parser.add_argument("--out", type=Path, default=Path("benchmark-results/weld_seg"))
    parser.add_argument("--norm", default="cbn", help="cbn, brn, bn, gn or frozen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the setting's")
    arguments = parser.parse_args()
    folder = arguments.datasets / "weld_seg" / "data"
    if not folder.is_dir():
        parser.error(f"{folder} is not there; name the folder of data sets with --datasets")
    run_dir = arguments.out / f"{arguments.norm}-{arguments.seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    config = json.dumps(_config(folder, run_dir, arguments), indent=2)
    config_path = run_dir / "config.json"
    if config_path.exists() and config_path.read_text() != config:
        parser.error(f"{run_dir} holds a run of other settings; remove it or choose another --out")
    # With equal settings an interrupted run goes on, and a finished one is judged again.
    config_path.write_text(config)
    command = [sys.executable, "-m", "training", str(run_dir)]
    status = subprocess.run(command, check=False).returncode  # noqa: S603 - our own program.
    if status != 0:
        return status
    report = json.loads((run_dir / "report.json").read_text())
    print(table(report))
    draw_overlays(run_dir, folder)
    print(f"\n{OVERLAYS} test overlays are in {run_dir / 'overlays'}")
    return 0


def _config(folder: Path, run_dir: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = import_folder(folder, classes=["defect"], unlabelled="reject", root=None)
    if found.problems:
        raise SystemExit(f"{len(found.problems)} problems, first: {found.problems[0]}")
    items = assign_splits(found.items, SplitSpec(seed=0))
    manifest = Manifest("segmentation", tuple(found.classes), items)
    manifest.write(run_dir / "manifest.jsonl")
    settings = SETTINGS["cuda" if torch.cuda.is_available() else "cpu"]
    config = {
        **settings,
        "data": {
            "manifest": str((run_dir / "manifest.jsonl").resolve()),
            "root": str(folder.resolve()),
        },
        "norm": {"kind": arguments.norm},
        "seed": arguments.seed,
    }
    if arguments.epochs:
        config["budget"] = {"max_epochs": arguments.epochs}
    return config


def table(report: dict[str, Any]) -> str:
    """Return the scores as a Markdown table with the conditions above it."""
    training, machine = report["training"], report["machine"]
    resolution = training["resolution"]
    where = (
        "native size"
        if resolution["mode"] == "native"
        else f"native crops of {resolution['height_px']}x{resolution['width_px']}"
    )
    metrics, baselines = report["metrics"], report["baselines"]
    rows = [
        (f"trained model, {report['norm']['spec']['kind']}", metrics["pixels"]["any"]),
        ("all background", baselines["all_background"]),
        ("all foreground", baselines["all_foreground"]),
        (
            f"{baselines['brightness_threshold']['direction']} than a threshold",
            baselines["brightness_threshold"],
        ),
    ]
    recall = metrics["regions"]["defect"]["recall"]
    lines = [
        (
            f"Trained on {where}, batch {training['batch_size']}, {training['steps']} steps in "
            f"{training['seconds'] / 60:.1f} min on {machine['device']} "
            f"({machine['threads']} threads, {machine['precision']}); judged on "
            f"{metrics['frames']} whole test frames."
        ),
        "",
        "| answer | test Dice | test IoU |",
        "|---|---|---|",
        *(f"| {name} | {scores['dice']:.3f} | {scores['iou']:.3f} |" for name, scores in rows),
        "",
        (
            f"Labelled defects found: {recall['events']} of {recall['n']} "
            f"(95 % interval {recall['low']:.2f} to {recall['high']:.2f}); "
            f"{metrics['regions']['defect']['false_per_frame']:.2f} false regions a frame."
        ),
    ]
    return "\n".join(lines)


def draw_overlays(run_dir: Path, root: Path) -> None:
    """Write test frames with the label's outline in green and the model's in red."""
    manifest = Manifest.read(run_dir / "manifest.jsonl")
    dataset = FrameDataset(manifest, root, "test", seed=0, augmentation=None, crop=None)
    model = FrozenModel(load_bundle(run_dir / "bundle"))
    folder = run_dir / "overlays"
    folder.mkdir(exist_ok=True)
    for index in range(min(OVERLAYS, len(dataset))):
        frame = dataset.frame(index, 0)
        picture = np.ascontiguousarray(frame.pixels[:, :, ::-1])
        _outline(picture, frame.mask[:, :, 0], (0, 255, 0))
        for defect in model.inspect(frame.pixels).defects:
            points = np.array(defect.polygon, np.int32)[:, None]
            cv2.polylines(picture, [points], isClosed=True, color=(0, 0, 255), thickness=3)
        cv2.imwrite(str(folder / f"{index:02d}.jpg"), picture)


def _outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, contours, -1, colour, 3)


if __name__ == "__main__":
    sys.exit(main())
