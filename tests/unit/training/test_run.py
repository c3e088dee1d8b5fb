"""A run is a directory: started, cancelled, killed, resumed, refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import torch

from data import Manifest, SplitSpec, assign_splits, decode_frame, import_folder
from models import FrozenModel, load_bundle, read_bundle_info
from models.part_scores import rates_at, read_part_scores
from tests.oracles.bayer import mosaic_of
from tests.oracles.trained_forward import trained_forward
from tests.training_runs import (
    CLASSES,
    finish,
    kinds,
    make_run,
    start,
    wait_for_checkpoints,
    wait_for_event,
    wait_for_step,
    weights,
)
from training.checkpoint import load_latest_checkpoint
from training.events import read_events
from training.exit_status import EXIT_FAILED, EXIT_LOCKED
from training.loop import MOST_REWINDS
from training.run import PARITY_TOLERANCE, execute

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Kills itself when the network has run the n-th batch that it learns from.
DIES_LEARNING = """
import os, signal, sys
from pathlib import Path
import torch
from segmentation_models_pytorch.base import SegmentationModel
from torch.nn.modules.module import register_module_forward_hook
from training.run import execute
left = int(sys.argv[2])
def count(module, inputs, outputs):
    global left
    if isinstance(module, SegmentationModel) and module.training and torch.is_grad_enabled():
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
register_module_forward_hook(count)
sys.exit(execute(Path(sys.argv[1])))
"""


def test_a_run_killed_twice_ends_at_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, frames: Path
) -> None:
    # Nothing about how frames are read may show in the weights: one run reads each frame when it is
    # needed and keeps none, the other loads ahead and shares a cache of decoded frames.
    sampled: dict[str, Any] = {
        "sampling": {"defect_rate": 0.6},
        "augmentation": {"rotation_deg": 5, "gradient": 0.2, "blur_px": 1, "paste_rate": 0.3},
        "ema": {"decay": 0.9},
        # Its weight follows the step, also after a kill.
        "loss": {"kind": "boundary", "reach_px": 8},
        "batch_size": 1,
        "accumulation_steps": 2,
    }
    root = {"manifest": str(frames / "manifest.jsonl"), "root": str(frames)}
    alone = {**root, "workers": 0, "cache": {"max_bytes": 0}}
    whole = make_run(tmp_path / "whole", frames, data=alone, **sampled)
    assert finish(whole) == 0

    ahead = {**root, "workers": 3, "cache": {"directory": str(tmp_path / "decoded")}}
    killed = make_run(tmp_path / "killed", frames, data=ahead, **sampled)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # The fourth step has run one of its two batches, and preflight ran eight before the first.
    command = [sys.executable, "-c", DIES_LEARNING, str(killed.path), "16"]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    process = start(killed)
    wait_for_step(killed, 13)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finish(killed) == 0

    resumed = [e["resumed_from_step"] for e in read_events(killed.events) if e["kind"] == "started"]
    assert resumed[0] is None
    assert resumed[1] == 3
    assert resumed[2] >= 13
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_at_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, frames: Path
) -> None:
    long = {"budget": {"max_epochs": 16}}
    whole = make_run(tmp_path / "whole", frames, **long)
    assert finish(whole) == 0

    killed = make_run(tmp_path / "killed", frames, **long)
    moments = random.Random(20)  # noqa: S311 - nothing is kept secret by it.
    for _ in range(20):
        seen = kinds(killed).count("checkpoint")
        process = start(killed)
        if moments.random() < 0.25:
            # While libraries load, the manifest is read or the network is built.
            time.sleep(moments.uniform(0, 4))
        else:
            wait_for_checkpoints(killed, seen + moments.randint(1, 4))
            time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert finish(killed) == 0
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(killed)[name]), name


def test_a_run_ships_a_moving_average_and_true_statistics_if_they_are_better(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        budget={"max_steps": 3},
        ema={"decay": 0.8},
        recalibration={"max_frames": 4, "max_cost": 100},
    )
    assert finish(run) == 0
    report = json.loads(run.report.read_text())
    stated = report["recalibration"]
    (event,) = (e for e in read_events(run.events) if e["kind"] == "recalibration")
    assert {name: event[name] for name in stated} == stated
    better = stated["calibration_dice_after"] > stated["calibration_dice_before"]
    assert stated["kept"] == better

    checkpoint, _ = load_latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    shipped = weights(run)
    assert shipped.keys() == checkpoint["ema"].keys()
    for name, tensor in shipped.items():
        if "running" not in name or not better:
            assert torch.equal(tensor, checkpoint["ema"][name]), name
    head = "segmentation_head.0.weight"
    assert not torch.equal(shipped[head], checkpoint["network"][head])
    assert report["training"]["ema"] == {"decay": 0.8}
    assert read_bundle_info(run.bundle).ema_decay == 0.8
    looked = [e["values"] for e in read_events(run.events) if e["kind"] == "metrics"][-1]
    assert looked["training_loss"] > 0


def test_a_run_that_overflows_goes_back_and_on_with_a_lower_rate(
    tmp_path: Path, frames: Path
) -> None:
    # At this rate weights grow by a factor of ten a step until no float32 holds them.
    hot = {"optimizer": {"learning_rate": 1e5, "warmup_steps": 0}}
    whole = make_run(tmp_path / "whole", frames, **hot)
    assert finish(whole) == 0
    training = json.loads(whole.report.read_text())["training"]
    assert 1 <= training["rewinds"] <= MOST_REWINDS
    assert training["steps"] == 21
    warnings = [event for event in read_events(whole.events) if event["kind"] == "warning"]
    assert len(warnings) == training["rewinds"]
    assert f"divided by {2 ** training['rewinds']}" in warnings[-1]["detail"]
    assert all(tensor.isfinite().all() for tensor in weights(whole).values())

    killed = make_run(tmp_path / "killed", frames, **hot)
    process = start(killed)
    wait_for_event(killed, "warning")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finish(killed) == 0
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(killed)[name]), name


def test_a_run_that_overflows_at_every_rate_says_what_to_lower(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames, optimizer={"learning_rate": 1e8, "warmup_steps": 0})
    assert finish(run) == EXIT_FAILED
    *_, failed = read_events(run.events)
    assert failed["code"] in ("loss_not_finite", "gradient_not_finite")
    assert "optimizer.learning_rate" in failed["hint"]
    assert kinds(run).count("warning") == MOST_REWINDS
    assert not run.bundle.exists()


def test_a_cancel_request_stops_the_run_and_a_later_start_goes_on(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames)
    process = start(run)
    wait_for_step(run, 2)
    request = run.path / "requests" / "cancel"
    request.parent.mkdir()
    request.touch()
    assert process.wait(timeout=120) == 0
    assert kinds(run)[-1] == "cancelled"
    assert not run.bundle.exists()

    request.unlink()
    assert finish(run) == 0
    assert kinds(run)[-1] == "finished"
    sequence = [event["seq"] for event in read_events(run.events)]
    assert sequence == list(range(1, len(sequence) + 1))


def test_a_second_start_leaves_a_living_run_alone(tmp_path: Path, frames: Path) -> None:
    run = make_run(tmp_path / "run", frames)
    with run.locked():
        assert finish(run) == EXIT_LOCKED
    assert not run.events.exists()


def test_a_run_tells_how_often_it_saw_defects_what_it_cached_and_shows_its_frames(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        resolution={"mode": "crop", "height_px": 96, "width_px": 96},
        sampling={"defect_rate": 0.25},
        budget={"max_epochs": 1},
    )
    assert finish(run) == 0
    sampling = json.loads(run.report.read_text())["training"]["sampling"]
    assert sampling["defect_rate_asked"] == 0.25
    assert sampling["defect_rate_seen"] == sampling["defect_rate_planned"]
    assert sampling["frames_with_defects"] > 0.5
    events = read_events(run.events)
    (planned,) = (event for event in events if event["kind"] == "sampling")
    assert planned["defect_rate"] == sampling["defect_rate_planned"]
    cached = [event for event in events if event["kind"] == "cache"]
    assert cached[-1]["frames"] == 24
    assert cached[-1]["detail"].startswith("decoded cache: 24 frames, 0.0 GB of ")
    assert not run.decoded.exists(), "a cache of the run's own goes with the run"
    sheet = cv2.imread(str(run.training_frames))
    assert sheet is not None
    assert min(sheet.shape[:2]) > 300


def test_the_report_tells_what_was_trained_and_on_what_it_rests(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        resolution={"mode": "crop", "height_px": 96, "width_px": 96, "defect_rate": 0.7},
        escape={"max_rate": 0.01},
    )
    assert finish(run) == 0
    report = json.loads(run.report.read_text())
    assert {layer["kind"] for layer in report["norm"]["converted"]} == {"cbn"}
    assert report["norm"]["left"] == []
    assert report["folding"]["left"] == []
    assert report["training"]["resolution"]["mode"] == "crop"
    assert report["parity"]["max_difference"] <= report["parity"]["tolerance"]
    metrics = report["metrics"]
    assert metrics["escape"]["n"] + metrics["overkill"]["n"] == metrics["frames"]
    assert set(report["operating_point"]["classes"]) == set(CLASSES)
    assert report["baselines"]["all_background"]["dice"] == 0
    assert 0 < report["baselines"]["all_foreground"]["dice"] < 0.2
    assert report["dataset"]["digest"] == read_bundle_info(run.bundle).dataset_digest
    # Two frames of a part share its verdict.
    assert metrics["by_part"]["most_frames"] == 2
    chosen = [each for each in report["evaluation"]["escape_overkill"] if each["is_chosen"]]
    assert [each["frames"]["escape"] for each in chosen] == [metrics["escape"]]
    # What the bundle keeps of the test parts comes to the same, without asking for a frame.
    info = read_bundle_info(run.bundle)
    kept = read_part_scores(run.bundle, info.weights_sha256)
    assert kept is not None
    told = rates_at(kept, info.operating_point)
    assert {name: metrics["by_part"][name] for name in told} == told
    assert len(kept.test) == metrics["by_part"]["parts"]
    pictures = {entry["picture"] for entry in report["evaluation"]["gallery"]}
    assert {path.name for path in run.gallery.glob("*.webp")} == pictures
    page = run.page.read_text()
    # So few calibration parts prove no escape rate of one percent, and all places say so.
    shown = [
        name
        for name, chosen in report["operating_point"]["classes"].items()
        if "certificate" in chosen["evidence"]
    ]
    assert shown
    warned = [e for e in read_events(run.events) if e.get("code") == "escape_not_proven"]
    assert len(warned) == len(shown)
    assert page.count("Not proven: at most") >= len(shown)
    assert page.count("data:image/webp") == len(pictures) > 0
    assert report["dataset"]["digest"] in page
    for curve in ("Loss", "Calibration Dice", "Learning rate", "Gradient norm before clipping"):
        assert f"<figcaption>{curve}" in page
    assert all(sentence.replace(" %", "\xa0%") in page for sentence in report["statements"])


@pytest.fixture(scope="module")
def mosaics(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn frames under coloured light, as a 16-bit sensor with GBRG filters delivers them."""
    root = tmp_path_factory.mktemp("mosaics") / "set"
    shutil.copytree(frames, root)
    for path in (root / "images").glob("*.png"):
        grey = imagecodecs.png_decode(path.read_bytes()).astype(np.float64)
        colour = np.rint(grey[:, :, None] * [257.0, 150.0, 80.0]).astype(np.uint16)
        path.write_bytes(imagecodecs.png_encode(mosaic_of(colour, "GBRG")))
    found = import_folder(root, classes=CLASSES, bayer="GBRG")
    assert not found.problems
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items, bayer="GBRG").write(root / "manifest.jsonl")
    return root


def test_a_model_of_raw_bayer_frames_carries_its_pattern_and_says_what_the_trained_network_says(
    tmp_path: Path, mosaics: Path
) -> None:
    run = make_run(tmp_path / "run", mosaics, budget={"max_epochs": 1})
    assert finish(run) == 0
    info = read_bundle_info(run.bundle)
    assert (info.preprocessing.bayer, info.preprocessing.in_channels) == ("GBRG", 3)
    red, green, blue = info.preprocessing.mean
    assert red > 1.5 * green > 2 * blue
    trained, frozen = trained_forward(run.path), FrozenModel(load_bundle(run.bundle), "cpu")
    for path in sorted((mosaics / "images").glob("*.png"))[:2]:
        raw = path.read_bytes()
        pixels = decode_frame(raw, name=path.name, bayer=info.preprocessing.bayer).pixels
        expected = trained.probabilities(pixels)
        assert np.ptp(expected) > 100 * PARITY_TOLERANCE["cpu"], "a constant map proves nothing"
        difference = np.abs(frozen.probabilities(pixels) - expected).max()
        assert difference <= PARITY_TOLERANCE["cpu"]


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "kind"), [(1, 1, "cbn"), (1, 2, "bn")]
)
def test_without_a_wish_the_normalization_suits_the_step_and_report_and_bundle_name_it(
    tmp_path: Path, frames: Path, batch_size: int, accumulation_steps: int, kind: str
) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        norm={},
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        budget={"max_steps": 2},
    )
    assert finish(run) == 0
    stated = json.loads(run.report.read_text())["norm"]
    assert (stated["asked"], stated["spec"]) == ("auto", {"kind": kind})
    assert {layer["kind"] for layer in stated["converted"]} <= {kind}
    assert read_bundle_info(run.bundle).norm.kind == kind


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"batch": 2}, "config_invalid", "/batch"),
        ({"batch_size": 0}, "config_invalid", "/batch_size"),
        ({"device": "cuda:99"}, "device_missing", "cuda:99"),
        (
            {"resolution": {"mode": "crop", "height_px": 100, "width_px": 96}},
            "crop_not_divisible",
            "100",
        ),
        (
            {
                "model": {"architecture": "fasterrcnn"},
                "memory": {"look_tile_px": 256},
            },
            "config_invalid",
            "look_tile_px",
        ),
        (
            {"data": {"manifest": "/nowhere/manifest.jsonl", "root": "/nowhere"}},
            "manifest_unreadable",
            "",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_place_and_remedy(
    tmp_path: Path, frames: Path, changes: dict[str, Any], code: str, named: str
) -> None:
    run = make_run(tmp_path / "run", frames, **changes)
    assert execute(run.path) == EXIT_FAILED
    failed = read_events(run.events)[-1]
    assert (failed["kind"], failed["code"]) == ("failed", code)
    assert named in failed["detail"]
    assert failed["hint"]
