"""A run that has no memory to look at a whole frame looks at it in tiles, and says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset
from models.tiling import TILING_TOLERANCE
from tests.training_runs import CLASSES, finish, finish_short_of_memory, make_run, prepare_run
from training.config import read_config
from training.errors import ConfigError, OutOfMemory
from training.eval_forward import EvalForward
from training.events import EventLog, read_events
from training.memory.limits import boot_id, kernel_memory_kills
from training.memory.plan import MemoryPlan
from training.memory.shortage import LookRanOut, looking
from training.memory.step_in_flight import step_in_flight
from training.preparation import prepare
from training.run_directory import RunDirectory

pytestmark = pytest.mark.timeout(900)

# An encoder without squeeze and excitation, which sees some 70 px far at this depth.
MODEL: dict[str, Any] = {
    "encoder": "resnet18",
    "encoder_depth": 3,
    "decoder_channels": [8, 8, 8],
}
CROPS: dict[str, Any] = {"mode": "crop", "height_px": 64, "width_px": 64}
HEIGHT_PX, WIDTH_PX = 640, 768
# A step on windows needs some 25 MB, a look at frames of 1280x1024 some 400 MB.
LEFT_BYTES = 250_000_000


def draw_frames(root: Path, *, width_px: int, height_px: int) -> Path:
    """Draw a version of 6 frames, each far larger than what training sees of it."""
    write_dataset(root, count=6, good_rate=0.2, seed=3, width_px=width_px, height_px=height_px)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(root / "manifest.jsonl")
    return root


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_frames(tmp_path_factory.mktemp("frames"), width_px=WIDTH_PX, height_px=HEIGHT_PX)


def small_run(directory: Path, frames: Path, **changes: Any) -> RunDirectory:
    data = {
        "manifest": str(frames / "manifest.jsonl"),
        "root": str(frames),
        "workers": 0,
        "cache": {"max_bytes": 0},
    }
    wishes = {"data": data, "model": MODEL, "resolution": CROPS, "budget": {"max_steps": 1}}
    return make_run(directory, frames, **{**wishes, **changes})


def of_kind(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events) if event["kind"] == kind]


def test_the_network_that_trains_answers_in_tiles_as_on_the_whole_frame(
    tmp_path: Path, frames: Path
) -> None:
    run = small_run(tmp_path / "run", frames, memory={"look_tile_px": 256})
    prepared = prepare_run(run)
    tiles = prepared.look_tiles
    assert tiles is not None
    before = {name: tensor.clone() for name, tensor in prepared.network.state_dict().items()}
    cut = tiles((HEIGHT_PX, WIDTH_PX), 1)
    assert cut is not None
    seen_px = [max(part.stop - part.start for part in tile.seen) for tile in cut]
    assert max(seen_px) <= tiles.seen_px < WIDTH_PX
    kept = np.zeros((HEIGHT_PX, WIDTH_PX), int)
    for tile in cut:
        kept[tile.kept] += 1
    assert (kept == 1).all()
    pixels = prepared.test.frame(0, epoch=0).pixels
    answers = [
        EvalForward(prepared.network, prepared.preprocessing, prepared.device, each).probabilities(
            pixels
        )
        for each in (None, tiles)
    ]
    assert np.ptp(answers[0]) > 100 * TILING_TOLERANCE, "a constant map would show no seam"
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=TILING_TOLERANCE)
    for name, tensor in prepared.network.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} moved"


def test_a_network_that_pools_over_the_frame_is_refused_tiles_with_the_reason(
    tmp_path: Path, frames: Path
) -> None:
    pooling = {**MODEL, "encoder": "mobilenet_v3_small"}
    run = small_run(tmp_path / "run", frames, model=pooling, memory={"look_tile_px": 256})
    log = EventLog(run.events)
    with pytest.raises(ConfigError, match="squeeze and excitation") as refused:
        prepare(read_config(run.config), log)
    log.close()
    assert refused.value.code == "tiles_not_exact"


def test_whole_frames_that_do_not_fit_are_looked_at_in_tiles_and_the_report_says_so(
    tmp_path: Path, frames: Path
) -> None:
    # Each run has its own process: this one's memory counts in what a run needs, and comes and goes
    # by more than the limit leaves out.
    free = small_run(tmp_path / "free", frames, dry_run=True)
    assert finish(free) == 0
    (found,) = of_kind(free, "preflight")
    assert found["looks_whole_because"] is None
    phases = found["estimate"]["phase_bytes"]
    assert max(phases, key=lambda name: phases[name]) == "whole_frame"
    short_bytes = int(found["headroom"] * (phases["whole_frame"] - 20_000_000))

    bound = small_run(tmp_path / "bound", frames, memory={"limit_bytes": short_bytes})
    assert finish(bound) == 0
    report = json.loads(bound.report.read_text())
    (rung,) = report["memory"]["rungs"]
    assert rung["rung"] == "tiles"
    assert "to look at a whole frame" in rung["because"]
    assert "order of sums" in rung["consequence"]
    assert report["memory"]["fits"]
    assert "training was too short for it" in report["recalibration"]["reason"]
    assert report["parity"]["max_difference"] <= report["parity"]["tolerance"]
    codes = [event["code"] for event in of_kind(bound, "warning")]
    assert "memory_step_down" in codes

    refused = small_run(
        tmp_path / "refused", frames, memory={"limit_bytes": short_bytes, "ladder": []}
    )
    assert finish(refused) == 1
    (failed,) = of_kind(refused, "failed")
    assert failed["code"] == "does_not_fit"
    assert "allow 'tiles' in memory.ladder" in failed["hint"]


@pytest.mark.slow
def test_a_run_whose_memory_runs_out_in_a_look_goes_on_in_tiles(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    large = draw_frames(tmp_path / "frames", width_px=1280, height_px=1024)
    run = small_run(tmp_path / "run", large, recalibration=None, checkpoint_every_s=0)
    assert finish_short_of_memory(run, LEFT_BYTES) == 0, (run.path / "log.txt").read_text()
    rungs = json.loads(run.report.read_text())["memory"]["rungs"]
    assert {rung["rung"] for rung in rungs} == {"tiles"}
    assert all("while whole frames were looked at" in rung["because"] for rung in rungs)
    assert rungs[-1]["step"] == 1


def plan_of(run: RunDirectory, events: EventLog, reason: str | None) -> MemoryPlan:
    """A plan as an attempt leaves it that has seen its frames."""
    content = {
        "frame": [64, 64],
        "look_frame": [HEIGHT_PX, WIDTH_PX],
        "looks_whole_because": reason,
        "rungs": [],
        "config": read_config(run.config).model_dump(mode="json"),
    }
    run.memory.write_text(json.dumps(content))
    return MemoryPlan(run, read_config(run.config), events)


def test_memory_that_runs_out_in_a_look_takes_tiles_and_no_rung_of_training(
    tmp_path: Path, frames: Path
) -> None:
    run = small_run(tmp_path / "run", frames)
    events = EventLog(run.events)
    with pytest.raises(LookRanOut, match="can't allocate"), looking():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    plan = plan_of(run, events, None)
    plan.step_down("memory ran out", 1, looking=True)
    assert plan.config.memory.look_tile_px == WIDTH_PX // 2
    assert not plan.config.memory.activation_checkpointing
    with pytest.raises(OutOfMemory) as ended:
        plan.step_down("memory ran out", 1, looking=True)
    assert "smallest tiles" in (ended.value.hint or "")

    whole = plan_of(run, events, "it pools over the frame")
    with pytest.raises(OutOfMemory) as ended:
        whole.step_down("memory ran out", 1, looking=True)
    assert "because it pools over the frame" in (ended.value.hint or "")
    events.close()


@pytest.mark.skipif(kernel_memory_kills() is None, reason="the kernel does not count kills here")
def test_a_death_in_a_look_counts_only_if_the_kernel_killed_meanwhile(
    tmp_path: Path, frames: Path
) -> None:
    run = small_run(tmp_path / "run", frames)
    events = EventLog(run.events)
    with step_in_flight(run.step_in_flight, 3, looking=True):
        died = json.loads(run.step_in_flight.read_text())
    # As before a kill, which is not this program's to make.
    for kills, tile_px in ((died["kernel_kills"], None), (-1, WIDTH_PX // 2)):
        for _ in range(2):
            run.step_in_flight.write_text(json.dumps({**died, "kernel_kills": kills}))
            plan = plan_of(run, events, None)
            assert plan.config.memory.look_tile_px == tile_px
    (rung,) = plan.content["rungs"]
    assert "while it looked at whole frames" in rung["because"]
    # Without a rung the run goes on: it may have been another program's memory.
    run.step_in_flight.write_text(json.dumps({**died, "kernel_kills": -1, "boot": boot_id()}))
    assert plan_of(run, events, "it pools over the frame").content["rungs"] == []
    events.close()
