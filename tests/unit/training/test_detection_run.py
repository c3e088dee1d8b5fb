"""A detector's run: boxes in, a bundle out, resumable, and its report says what it rests on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data import Box, BoxLabels, Manifest, SplitSpec, assign_splits, import_folder
from data.instances import boxes_of_labels
from data.synthetic import write_dataset
from models import FrozenDetector, freeze_bundle, load_bundle
from tests.training_runs import prepare_run
from training.config import read_config
from training.detection import DetectionBatch, EvalDetector
from training.errors import DivergedError
from training.events import EventLog, read_events
from training.exit_status import EXIT_FAILED, EXIT_OK
from training.optimizer_step import batch_loss
from training.preparation import learner_of, prepare
from training.progress import Progress
from training.run import execute
from training.run_directory import RunDirectory

CLASSES = ("scratch", "pit", "stain")


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn frames with a manifest of their masks and one of the boxes around them."""
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, count=12, good_rate=0.35, seed=3, width_px=96, height_px=80)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    assert not found.problems
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(root / "masks.jsonl")
    boxed = []
    for item in items:
        boxes = tuple(
            Box(box.class_name, box.x, box.y, box.width, box.height)
            for box in boxes_of_labels(item.labels, item.width, item.height, CLASSES, root)
        )
        labels = BoxLabels(boxes) if boxes else item.labels
        boxed.append(dataclasses.replace(item, labels=labels))
    Manifest("detection", CLASSES, tuple(boxed)).write(root / "boxes.jsonl")
    return root


def make_run(
    directory: Path, frames: Path, manifest: str = "boxes", **changes: Any
) -> RunDirectory:
    directory.mkdir()
    config = {
        "data": {
            "manifest": str(frames / f"{manifest}.jsonl"),
            "root": str(frames),
            "workers": 0,
            "cache": {"max_bytes": 0},
        },
        "model": {
            "architecture": "retinanet",
            "encoder": "mobilenet_v3_small",
            "detection": {"pyramid_channels": 32},
        },
        "norm": {"kind": "cbn", "window_size": 4},
        "budget": {"max_epochs": 2},
        "checkpoint_every_s": 0,
        "device": "cpu",
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return RunDirectory(directory)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(run.bundle / "weights.safetensors")
    return loaded


def kinds(run: RunDirectory) -> list[str]:
    return [event["kind"] for event in read_events(run.events)]


def model_of(architecture: str) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "encoder": "mobilenet_v3_small",
        "detection": {"pyramid_channels": 32},
    }


@pytest.mark.slow
# Faster R-CNN draws at random which anchors and regions it learns from.
def test_a_detector_s_run_that_died_ends_at_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, frames: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster: dict[str, Any] = {"model": model_of("fasterrcnn"), "budget": {"max_steps": 5}}
    whole = make_run(tmp_path / "whole", frames, **faster)
    assert execute(whole.path) == EXIT_OK

    killed = make_run(tmp_path / "killed", frames, **faster)
    step = Progress.step

    def die(self: Progress, number: int, *rest: Any, **others: Any) -> None:
        if number == 3:
            raise KeyboardInterrupt
        step(self, number, *rest, **others)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "step", die)
        with pytest.raises(KeyboardInterrupt):
            execute(killed.path)
    assert not killed.bundle.exists()
    assert execute(killed.path) == EXIT_OK
    started = [e["resumed_from_step"] for e in read_events(killed.events) if e["kind"] == "started"]
    assert started == [None, 2]
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_the_report_and_the_bundle_tell_what_a_detector_was_trained_on_and_reached(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        manifest="masks",
        resolution={"mode": "crop", "height_px": 64, "width_px": 64},
        budget={"max_epochs": 1},
        escape={"max_rate": 0.01},
    )
    assert execute(run.path) == EXIT_OK
    report = json.loads(run.report.read_text())
    assert report["task"] == "detection"
    assert {layer["kind"] for layer in report["norm"]["converted"]} == {"cbn"}
    assert report["folding"]["left"] == []
    assert report["parity"]["max_difference"] <= report["parity"]["tolerance"]
    metrics = report["metrics"]
    assert metrics["escape"]["n"] + metrics["overkill"]["n"] == metrics["frames"]
    assert set(metrics["boxes"]["classes"]) == set(CLASSES)
    assert report["baselines"]["nothing"]["ap50"] == 0
    assert report["training"]["calibration_ap50"] >= 0
    assert set(report["operating_point"]["classes"]) == set(CLASSES)
    shown = [
        c["evidence"]["certificate"]
        for c in report["operating_point"]["classes"].values()
        if "certificate" in c["evidence"]
    ]
    assert shown
    assert all(
        each["missing_parts"] == 299 - each["defective_parts"]
        for each in shown
        if not each["escapes"]
    )
    gallery = report["evaluation"]["gallery"]
    assert {entry["kind"] for entry in gallery} == {"miss", "false_alarm"}
    page = run.page.read_text()
    assert page.count("data:image/webp") == len(gallery) == len([*run.gallery.glob("*.webp")])
    assert "by the score of the one that finds them" in page

    events = read_events(run.events)
    (anchors,) = (event for event in events if event["kind"] == "anchors")
    settled = report["model"]["detection"]
    assert anchors["anchor_sizes_px"] == settled["anchor_sizes_px"]
    assert len(settled["anchor_sizes_px"]) == 6
    codes = [event.get("code") for event in events if event["kind"] == "warning"]
    assert "areas_as_boxes" in codes
    assert report["memory"]["fits"]
    assert report["memory"]["measured_peak_bytes"] > 0
    looks = [
        e["values"] for e in events if e["kind"] == "metrics" and "calibration_ap50" in e["values"]
    ]
    assert looks
    assert {f"calibration_ap50/{name}" for name in CLASSES} <= looks[0].keys()

    model = freeze_bundle(load_bundle(run.bundle), "cpu")
    assert isinstance(model, FrozenDetector)
    assert model.info.model.model_dump(mode="json") == report["model"]
    inspection = model.inspect(np.zeros((80, 96), np.uint8))
    assert inspection.verdict == ("NG" if inspection.defects else "OK")
    sheet = cv2.imread(str(run.training_frames))
    assert sheet is not None

    page = run.page.read_text()
    for told in ("retinanet with mobilenet_v3_small", "AP50:95", "was kept, AP50", "is a box"):
        assert told in page
    assert "pixel Dice" not in page


def test_a_detector_of_resized_frames_learns_resized_boxes_and_is_judged_on_native_ones(
    tmp_path: Path, frames: Path
) -> None:
    half: dict[str, Any] = {
        "resolution": {"mode": "resized", "factor": 0.5},
        "budget": {"max_epochs": 1},
    }
    run = make_run(tmp_path / "run", frames, **half)
    events = EventLog(tmp_path / "events.jsonl")
    prepared = prepare(read_config(run.config), events)
    events.close()
    shown = next(
        frame for frame in (prepared.train.frame(i, epoch=0) for i in range(9)) if frame.boxes
    )
    batch = prepared.task.collate([shown])
    assert isinstance(batch, DetectionBatch)
    assert batch.images[0].shape == (1, 40, 48)
    assert shown.boxes is not None
    sides = [[box.width / 2, box.height / 2] for box in shown.boxes]
    np.testing.assert_allclose((batch.boxes[0][:, 2:] - batch.boxes[0][:, :2]).numpy(), sides)

    assert execute(run.path) == EXIT_OK
    report = json.loads(run.report.read_text())
    labels = report["training"]["resized_labels"]
    assert (labels["labels"], labels["factor"]) == ("boxes", 0.5)
    manifest = Manifest.read(frames / "boxes.jsonl")
    native = [item for item in manifest.items if item.split == "test"]
    lines = [json.loads(line) for line in run.test_frames.read_text().splitlines()]
    assert [line["name"] for line in lines] == [item.name for item in native]
    labelled = [
        box for item in native if isinstance(item.labels, BoxLabels) for box in item.labels.boxes
    ]
    told = [defect["short_side_px"] for line in lines for defect in line["defects"]]
    assert sorted(told) == sorted(min(box.width, box.height) for box in labelled)
    assert report["defects_found"]["all"]["n"] == len(labelled)
    assert report["performance"]["prediction"]["frames_timed"] > 0
    model = freeze_bundle(load_bundle(run.bundle), "cpu")
    assert any("resized" in note for note in model.inspect(np.zeros((80, 96), np.uint8)).notes)


def test_segmentation_is_refused_where_every_defect_is_labelled_by_a_box(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames, model={"architecture": "unet"})
    assert execute(run.path) == EXIT_FAILED
    failed = read_events(run.events)[-1]
    assert (failed["kind"], failed["code"]) == ("failed", "boxes_only")
    assert "fasterrcnn" in failed["hint"]


def test_boxes_that_fcos_can_not_learn_are_counted(tmp_path: Path, frames: Path) -> None:
    model = {**model_of("fcos"), "detection": {"pyramid_channels": 32, "finest_stride_px": 8}}
    run = make_run(tmp_path / "run", frames, model=model)
    prepare_run(run)
    (warning,) = (e for e in read_events(run.events) if e.get("code") == "boxes_below_stride")
    assert "narrower than 8 px" in warning["detail"]


def test_a_detector_that_overflowed_is_told_from_one_that_finds_nothing(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames)
    prepared = prepare_run(run)
    forward = EvalDetector(
        prepared.network, prepared.model, prepared.preprocessing, prepared.device
    )
    pixels = prepared.test.frame(0, epoch=0).pixels
    prepared.network.train()
    forward.detections(pixels)
    assert prepared.network.training, "the network's mode is restored"
    with torch.no_grad():
        next(prepared.network.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="detections"):
        forward.detections(pixels)


def test_a_batch_holds_clean_frames_and_counts_its_padding(tmp_path: Path, frames: Path) -> None:
    run = make_run(tmp_path / "run", frames)
    prepared = prepare_run(run)
    shown = [prepared.train.frame(index, epoch=0) for index in range(len(prepared.train))]
    defective = next(frame for frame in shown if frame.boxes)
    clean = next(frame for frame in shown if not frame.boxes)
    batch = prepared.task.collate([defective, clean])
    assert batch.frame_count == 2
    assert batch.defective_count == 1
    _, (shown_boxes, no_boxes) = batch.inputs(prepared.device)
    assert len(shown_boxes["boxes"]) == len(shown_boxes["labels"]) > 0
    assert no_boxes["boxes"].shape == (0, 4)
    # 96x80 px are padded to 96x96.
    assert batch.pixel_count - batch.valid_pixel_count == 2 * 96 * 16
    assert batch.pixel_count == 2 * 96 * 96
    prepared.network.train()
    assert batch_loss(learner_of(prepared), batch).isfinite()


def test_anchors_that_fit_no_map_are_refused_before_the_first_step(
    tmp_path: Path, frames: Path
) -> None:
    detection = {"pyramid_channels": 32, "anchor_sizes_px": [8, 16]}
    run = make_run(
        tmp_path / "run", frames, model={**model_of("retinanet"), "detection": detection}
    )
    assert execute(run.path) == EXIT_FAILED
    failed = read_events(run.events)[-1]
    assert failed["code"] == "anchors_misfit"
    assert "one size a map" in failed["hint"]


def test_activations_that_are_computed_again_change_no_gradient(
    tmp_path: Path, frames: Path
) -> None:
    gradients = []
    for name, again in (("kept", False), ("again", True)):
        run = make_run(tmp_path / name, frames, memory={"activation_checkpointing": again})
        prepared = prepare_run(run)
        assert bool(prepared.recomputed) is again
        assert all(module.startswith("backbone.") for module in prepared.recomputed)
        prepared.network.train()
        batch = prepared.task.collate([prepared.train.frame(index, epoch=0) for index in (0, 1)])
        batch_loss(learner_of(prepared), batch).backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in prepared.network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for kept, again_made in zip(*gradients, strict=True):
        assert torch.equal(kept, again_made)
