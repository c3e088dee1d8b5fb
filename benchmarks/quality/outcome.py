"""What a finished run directory says: scores, time and memory, as an entry of the results."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.quality.protocol import Task
from training.events import read_events

_SILENCE_S = 60.0
_RECALIBRATION = ("kept", "frames", "window_px")


def outcome_of(run_dir: Path, task: Task) -> dict[str, Any]:
    """Return a finished run's scores and what they cost."""
    report = json.loads((run_dir / "report.json").read_text())
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    performance = report["performance"]
    main = "ap50" if task == "detection" else "dice"
    prediction = performance["prediction"] or {"frames_per_s": None}
    return {
        "scores": scores_of(report, task),
        "best_trivial": max(scores[main] or 0.0 for scores in report["baselines"].values()),
        "test_frames": report["metrics"]["frames"],
        "recalibration": {name: report["recalibration"][name] for name in _RECALIBRATION},
        "steps": report["training"]["steps"],
        "megapixels": performance["training"]["megapixels"],
        "training_s": performance["training"]["seconds"],
        "total_s": round(spent_s(events), 1),
        "predicted_frames_per_s": prediction["frames_per_s"],
        "peak_bytes": performance["memory"]["peak_bytes"],
        "threads": report["machine"]["threads"],
    }


def scores_of(report: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return a report's scores: numbers, or rates with events, n and exact bounds."""
    metrics = report["metrics"]
    if task == "detection":
        return {
            "ap50": metrics["boxes"]["ap50"],
            "escape": metrics["escape"],
            "overkill": metrics["overkill"],
        }
    return {
        "dice": metrics["pixels"]["any"]["dice"],
        "defects_found": report["defects_found"]["all"],
        "small_defects_found": report["defects_found"]["by_size"][0]["recall"],
        "escape": metrics["escape"],
        "overkill": metrics["overkill"],
    }


def failure_of(run_dir: Path) -> str:
    """Return why a run failed: in its own words, or else the last line that its program wrote."""
    for event in reversed(read_events(run_dir / "events.jsonl")):
        if event["kind"] == "failed":
            return f"{event['code']}: {event['detail']}"
    lines = (run_dir / "log.txt").read_text(errors="replace").splitlines()
    return lines[-1] if lines else "without a word"


def spent_s(events: Iterable[Mapping[str, Any]]) -> float:
    """Return how long a run's programs worked, not counting what lay between or stood still."""
    total_s, last = 0.0, None
    for event in events:
        at = datetime.fromisoformat(event["time"])
        if last is not None and event["kind"] != "started":
            passed_s = (at - last).total_seconds()
            # A program that works says so every few seconds; one that was stopped does not.
            total_s += passed_s if passed_s <= _SILENCE_S else 0.0
        last = at
    return total_s
