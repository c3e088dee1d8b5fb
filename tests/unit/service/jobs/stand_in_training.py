"""A program that keeps training's contract with the worker and computes nothing.

``python stand_in_training.py BUNDLE PLAN RUN_DIR``: each attempt does the next word of the plan,
the last one for ever: ``finish``, ``fail``, ``wait`` for a cancel request, ``die`` at once,
``estimate`` and finish without a model, ``save`` a checkpoint or ``shrink`` to less memory and then
die, or say it is finished and leave nothing (``empty``).
"""

import fcntl
import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

bundle, plan, run_dir = Path(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3])
lock = (run_dir / "lock").open("w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
events = run_dir / "events.jsonl"
lines = events.read_text().splitlines() if events.exists() else []
attempt = sum(json.loads(line)["kind"] == "started" for line in lines)
numbers = itertools.count(len(lines) + 1)
(run_dir / "pid").write_text(str(os.getpid()))


def say(kind: str, **data: object) -> None:
    with events.open("a") as file:
        event = {"seq": next(numbers), "time": "2026-01-05T08:00:00Z", "kind": kind, **data}
        file.write(json.dumps(event) + "\n")


print(f"attempt {attempt} begins", flush=True)  # noqa: T201 - a program prints to its log.
say("started", pid=os.getpid(), resumed_from_step=attempt or None)
say("stage", stage="preparing")
say("stage", stage="running")
say("progress", step=attempt + 1, steps_total=10, epoch=0, epochs_total=2, eta_s=1.0)
say("metrics", step=attempt + 1, epoch=0, values={"loss": 0.5})
match plan[min(attempt, len(plan) - 1)]:
    case "finish":
        say("stage", stage="evaluating")
        shutil.copytree(bundle, run_dir / "bundle")
        (run_dir / "report.json").write_text('{"metrics": {"dice": 0.5}}')
        say("finished", bundle="bundle", report="report.json")
    case "empty":
        say("finished", bundle="bundle", report="report.json")
    case "estimate":
        say("finished", bundle=None, report="report.json")
    case "fail":
        say("failed", code="out_of_memory", detail="the device has no memory", hint="use crops")
    case "wait":
        while not (run_dir / "requests" / "cancel").exists():
            time.sleep(0.02)
        say("cancelled")
    case "save":
        say("checkpoint", step=attempt + 1)
        os.kill(os.getpid(), signal.SIGKILL)
    case "shrink":
        say("memory_step_down", rung="accumulation", step=0)
        os.kill(os.getpid(), signal.SIGKILL)
    case "die":
        os.kill(os.getpid(), signal.SIGKILL)
