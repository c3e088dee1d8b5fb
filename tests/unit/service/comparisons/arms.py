"""What runs of four arms would leave behind, drawn from a fixed seed."""

import json
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

# Defects by short side; how many of each twenty an arm finds.
SIDES_PX = (4.0, 15.0, 60.0)
FOUND = {"native": (12, 18, 20), "half": (4, 17, 20), "quarter": (0, 9, 20), "tiled": (12, 18, 20)}
FRAMES = 20


def outcomes(arm: str, *, group_size: int = 1) -> list[dict[str, Any]]:
    """Twenty defective frames with a defect of each size, and as many good ones."""
    frames = []
    for index in range(FRAMES):
        found = [index < count for count in FOUND[arm]]
        defects = [
            {"class_name": "pit", "area_px": 9, "short_side_px": side, "found": hit}
            for side, hit in zip(SIDES_PX, found, strict=True)
        ]
        group = f"part {index // group_size}" if group_size > 1 else None
        hits = 100 * sum(found)
        frames.append(
            {
                "name": f"bad_{index}.png",
                "group": group,
                "defective": True,
                "rejected": any(found),
                "pixels": [hits, 30, 300 - hits],
                "false_regions": 0,
                "defects": defects,
            }
        )
        frames.append(
            {
                "name": f"good_{index}.png",
                "group": None,
                "defective": False,
                "rejected": False,
                "pixels": [0, 0, 0],
                "false_regions": 1,
                "defects": [],
            }
        )
    return frames


def report(arm: str) -> dict[str, Any]:
    """The parts of a run's report that a comparison reads."""
    edges = [(None, 10.0), (10.0, 20.0), (20.0, None)]
    sizes = [
        {"from_px": low, "below_px": high, "recall": interval(found, FRAMES)}
        for (low, high), found in zip(edges, FOUND[arm], strict=True)
    ]
    return {
        "metrics": {
            "escape": interval(0, FRAMES),
            "overkill": interval(0, FRAMES),
            "pixels": {"any": {"dice": 0.5, "iou": 0.4}},
        },
        "operating_point": {"classes": {}},
        "defects_found": {"all": interval(sum(FOUND[arm]), 3 * FRAMES), "by_size": sizes},
        "training": {
            "steps": 200,
            "epochs": 10,
            "batch_size": 1 if arm == "native" else 2,
            "accumulation_steps": 2 if arm == "native" else 1,
            "ended_by": "steps",
            "resized_labels": None
            if arm in ("native", "tiled")
            else {
                "factor": 0.5,
                "by_class": {"pit": {"labelled": 90, "vanished": 2, "merged": 1}},
            },
        },
        "performance": {
            "training": {
                "shown": "windows" if arm == "tiled" else "frames",
                "count": 400,
                "megapixels": 2000.0,
                "seconds": 100.0 if arm == "native" else 30.0,
                "frames_per_s": 4.0,
            },
            "prediction": {"frames_per_s": 2.0 if arm == "native" else 7.0},
            "memory": {"peak_bytes": 2_000_000_000, "of": "process", "since": "start"},
        },
        "machine": {"device": "cpu", "threads": 2},
    }


def interval(events: int, n: int) -> dict[str, Any]:
    found = binomtest(events, n).proportion_ci(0.95, method="exact")
    return {
        "events": events,
        "n": n,
        "rate": events / n,
        "low": float(found.low),
        "high": float(found.high),
    }


def leave_behind(run_dir: Path, arm: str) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "report.json").write_text(json.dumps(report(arm)))
    lines = [json.dumps(frame) + "\n" for frame in outcomes(arm)]
    (run_dir / "test_frames.jsonl").write_text("".join(lines))


def of_detector(told: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    """Turn a report and its outcomes into those of a detector, which has boxes and no pixels."""
    del told["metrics"]["pixels"]
    told["metrics"]["boxes"] = {"ap50": 0.25}
    for frame in frames:
        frame["pixels"] = None
