"""What a finished run's network says, before freezing, folding and the bundle."""

import json
from pathlib import Path

from training.checkpoint import load_latest_checkpoint
from training.config import read_config
from training.eval_forward import EvalForward
from training.events import EventLog
from training.loop import TrainingLoop
from training.preparation import prepare
from training.recalibration import recalibrate_if_better
from training.run_directory import RunDirectory


def trained_forward(run_dir: Path) -> EvalForward:
    """Return the network as the run's best epoch left it, rebuilt from the last checkpoint.

    Side effects: an events file of its own in the run's directory.
    """
    config = read_config(run_dir / "config.json")
    events = EventLog(run_dir / "events-of-the-test.jsonl")
    prepared = prepare(config, events)
    loop = TrainingLoop(config, prepared, RunDirectory(run_dir), events)
    report = json.loads((run_dir / "report.json").read_text())
    checkpoint, damaged = load_latest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert not damaged
    loop.resume(checkpoint)
    assert loop.state.step == report["training"]["steps"]
    loop.load_best()
    recalibrate_if_better(config, prepared, loop.state)
    events.close()
    return EvalForward(prepared.network, prepared.preprocessing, prepared.device)
