"""Making, starting, watching and reading runs of the training program."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training.config import read_config
from training.events import EventLog, read_events
from training.preparation import Prepared, prepare
from training.run_directory import RunDirectory

CLASSES = ("scratch", "pit", "stain")

# The training program; the kernel leaves it so many bytes beside what it holds as its first step
# begins, and a program that takes its place no more than that.
_SHORT_OF_MEMORY = """
import os, resource, runpy, sys
from pathlib import Path
from segmentation_models_pytorch.base import SegmentationModel
from torch.nn.modules.module import register_module_forward_pre_hook
from tests.training_runs import data_bytes
from training.events import read_events
from training.run_directory import RunDirectory
run, left_bytes = RunDirectory(Path(sys.argv[1])), int(sys.argv.pop())
def shorten(module, inputs):
    stages = [event.get("stage") for event in read_events(run.events)]
    if isinstance(module, SegmentationModel) and "running" in stages:
        limit = data_bytes(os.getpid()) + left_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        hook.remove()
if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
    hook = register_module_forward_pre_hook(shorten)
runpy.run_module("training", run_name="__main__")
"""


def make_run(directory: Path, frames: Path, **changes: Any) -> RunDirectory:
    directory.mkdir()
    config = {
        "data": {"manifest": str(frames / "manifest.jsonl"), "root": str(frames)},
        "model": {
            "encoder": "mobilenet_v3_small",
            "encoder_depth": 3,
            "decoder_channels": [16, 8, 8],
        },
        "norm": {"kind": "cbn", "window_size": 4},
        "budget": {"max_epochs": 3},
        "checkpoint_every_s": 0,
        "device": "cpu",
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return RunDirectory(directory)


def prepare_run(run: RunDirectory) -> Prepared:
    """Prepare in this process what the run would train, and tell its events file."""
    events = EventLog(run.events)
    try:
        return prepare(read_config(run.config), events)
    finally:
        events.close()


def start(run: RunDirectory) -> subprocess.Popen[bytes]:
    return _start(run, ["-m", "training", str(run.path)])


def _start(
    run: RunDirectory, arguments: Sequence[str], **environment: str
) -> subprocess.Popen[bytes]:
    with (run.path / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=log,
            stderr=log,
            # One thread: sums of floats in a fixed order, whatever else the machine does.
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )


def finish(run: RunDirectory) -> int:
    return start(run).wait(timeout=300)


def finish_short_of_memory(run: RunDirectory, left_bytes: int) -> int:
    """Run with so many bytes beside what the program holds as its first step begins."""
    arguments = ["-c", _SHORT_OF_MEMORY, str(run.path), str(left_bytes)]
    # Blocks that are given back at once, so that what is held does not depend on what was.
    return _start(run, arguments, MALLOC_MMAP_THRESHOLD_="131072").wait(timeout=500)


def data_bytes(pid: int) -> int:
    """What a program holds of what the kernel's limit on its data counts."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmData:")[1].split()[0])


def kinds(run: RunDirectory) -> list[str]:
    return [event["kind"] for event in read_events(run.events)]


def wait_for_step(run: RunDirectory, step: int) -> None:
    wait_for_event(run, "checkpoint", lambda event: event["step"] >= step)


def wait_for_checkpoints(run: RunDirectory, count: int) -> None:
    deadline = time.monotonic() + 200
    while kinds(run).count("checkpoint") < count:
        assert time.monotonic() < deadline, (run.path / "log.txt").read_text()
        time.sleep(0.02)


def wait_for_event(
    run: RunDirectory, kind: str, suits: Callable[[dict[str, Any]], bool] = lambda _: True
) -> None:
    deadline = time.monotonic() + 200
    while not any(event["kind"] == kind and suits(event) for event in read_events(run.events)):
        assert time.monotonic() < deadline, (run.path / "log.txt").read_text()
        time.sleep(0.02)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(run.bundle / "weights.safetensors")
    return loaded
