"""The frozen detector answers as the trained one would, in whole pixels of the frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import (
    Bundle,
    BundleInfo,
    ClassThreshold,
    Detections,
    DetectionSpec,
    FrameError,
    FrozenDetector,
    FrozenModel,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    OutputError,
    Preprocessing,
    build_network,
    frame_candidates,
    freeze_bundle,
    load_bundle,
    resize_pixels,
    resized_size,
    write_bundle,
)
from models.detections import Candidates, find_boxed_defects

CLASSES = ("pit", "scratch")
CPU = torch.device("cpu")


def trained(architecture: str, kind: str = "cbn", threshold: float = 0.5) -> Bundle:
    """A detector with running statistics far from their start, as training leaves them."""
    detection = DetectionSpec(pyramid_channels=32).settle(architecture, [(9, 7)])
    spec = ModelSpec(architecture=architecture, encoder="mobilenet_v3_small", detection=detection)
    info = BundleInfo(
        task="detection",
        classes=CLASSES,
        model=spec,
        norm=NormSpec.model_validate({"kind": kind}),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=spec.stride_px
        ),
        operating_point=OperatingPoint(
            classes={name: ClassThreshold(threshold=threshold) for name in CLASSES}
        ),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    network = build_network(info)
    pyramid = network.get_submodule("backbone").train()
    with torch.no_grad():
        for _ in range(3):
            pyramid(2 * torch.randn(2, 1, 64, 64) + 1)
    return Bundle(info=info, network=network.eval())


def frame(height_px: int, width_px: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (height_px, width_px), dtype=np.uint8)


@pytest.mark.parametrize("architecture", ["fasterrcnn", "retinanet", "fcos"])
def test_folding_changes_no_score_and_no_box(architecture: str) -> None:
    bundle = trained(architecture)
    pixels = frame(75, 133)
    before = frame_candidates(bundle.network, pixels, bundle.info.preprocessing, CPU)
    model = FrozenDetector(bundle, device="cpu")
    after = model.candidates(pixels, before.regions)
    assert not model.fold_report.left, "every batch normalization follows a convolution"
    assert len(model.fold_report.folded) > 30
    # Float32 products in another order; boxes count in sides of theirs or of their anchor's.
    assert before.largest_difference(after) < 1e-5
    assert np.ptp(np.concatenate([scores.numpy().ravel() for scores in before.scores])) > 1e-3


def test_candidates_that_differ_are_told_by_how_much() -> None:
    bundle = trained("retinanet")
    pixels = frame(64, 64)
    model = FrozenDetector(bundle, device="cpu")
    before = model.candidates(pixels)
    with torch.no_grad():
        for parameter in bundle.network.get_submodule("head.regression_head").parameters():
            parameter.add_(0.01)
    assert model.candidates(pixels).largest_difference(before) > 1e-3


@pytest.mark.parametrize(("sides", "unit"), [(0.5, 1.0), (50.0, 50.0)])
def test_a_box_is_off_by_parts_of_its_own_side_or_of_its_anchors_if_that_is_larger(
    sides: float, unit: float
) -> None:
    scores = (torch.zeros(1),)
    box = torch.tensor([[0.0, 0.0, sides, sides / 2]])
    one_edge = box + torch.tensor([0.0, 0.0, 0.01 * unit, 0.0])
    difference = Candidates(scores, (box,)).largest_difference(Candidates(scores, (one_edge,)))
    assert difference == pytest.approx(0.01, rel=1e-4)


def test_a_bundle_comes_back_from_disk_as_what_its_task_asks_for(tmp_path: Path) -> None:
    bundle = trained("fcos", kind="gn")
    write_bundle(tmp_path / "bundle", bundle.info, bundle.network.state_dict())
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.info.model.detection == bundle.info.model.detection
    model = freeze_bundle(loaded, "cpu")
    assert isinstance(model, FrozenDetector)
    expected = FrozenDetector(bundle, "cpu").detections(frame(64, 64))
    answer = model.detections(frame(64, 64))
    assert np.array_equal(answer.boxes, expected.boxes)
    assert np.array_equal(answer.scores, expected.scores)
    assert not isinstance(model, FrozenModel)


def test_the_verdict_follows_from_the_boxes_above_their_threshold() -> None:
    loud = FrozenDetector(trained("retinanet", threshold=0.0), "cpu").inspect(frame(75, 90))
    assert loud.verdict == "NG"
    assert loud.probabilities is None
    assert [d.score for d in loud.defects] == sorted((d.score for d in loud.defects), reverse=True)
    for defect in loud.defects:
        x, y, width, height = defect.box
        assert 0 <= x < x + width <= 90
        assert 0 <= y < y + height <= 75
        assert defect.area_px == width * height
        assert defect.polygon == ()
    assert any("at most 100 boxes" in note for note in loud.notes)
    silent = FrozenDetector(trained("retinanet", threshold=1.0), "cpu").inspect(frame(75, 90))
    assert (silent.verdict, silent.defects) == ("OK", ())
    assert set(silent.timings_ms) == {"model", "postprocess"}


@pytest.mark.parametrize("factor", [0.5, 0.3])
def test_a_detector_of_resized_frames_answers_in_pixels_of_the_frame_and_says_so(
    factor: float,
) -> None:
    native, small = trained("retinanet", threshold=0.0), trained("retinanet", threshold=0.0)
    preprocessing = native.info.preprocessing.model_copy(update={"resize_factor": factor})
    info = native.info.model_copy(update={"preprocessing": preprocessing})
    pixels = frame(175, 290)
    size = resized_size(175, 290, factor)
    # The same network on a frame that was resized by hand.
    expected = FrozenDetector(small, "cpu").detections(resize_pixels(pixels[:, :, None], size))
    model = FrozenDetector(Bundle(info=info, network=native.network), "cpu")
    found = model.detections(pixels)
    scale = np.array([290 / size[1], 175 / size[0]] * 2)
    assert len(found) == len(expected) > 0
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.boxes, expected.boxes * scale, rtol=1e-6)
    inspection = model.inspect(pixels)
    assert any("frame resized from 290x175" in note for note in inspection.notes)
    boxes = np.array([defect.box for defect in inspection.defects])
    assert (boxes[:, 0] + boxes[:, 2] <= 290).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 175).all()
    assert (boxes[:, 0] + boxes[:, 2]).max() > size[1]


def test_a_frame_of_another_depth_is_refused() -> None:
    with pytest.raises(FrameError):
        FrozenDetector(trained("fcos"), "cpu").inspect(np.zeros((64, 64), np.uint16))


def test_a_box_covers_the_pixels_that_it_touches_one_at_least() -> None:
    detections = Detections(
        boxes=np.array([[1.2, 2.7, 4.0, 5.1], [9.9, 3.0, 10.0, 3.0], [0, 0, 3, 3]], np.float32),
        scores=np.array([0.9, 0.8, 0.2], np.float32),
        classes=np.array([0, 1, 0]),
    )
    point = OperatingPoint(classes={name: ClassThreshold(threshold=0.5) for name in CLASSES})
    defects, notes = find_boxed_defects(detections, (6, 10), CLASSES, point, max_detections=100)
    assert [(d.class_name, d.box, d.area_px) for d in defects] == [
        ("pit", (1, 2, 3, 4), 12),
        ("scratch", (9, 3, 1, 1), 1),
    ]
    assert notes == []


@pytest.mark.parametrize(
    ("architecture", "place"),
    [
        ("retinanet", "backbone.fpn"),
        ("fcos", "head.regression_head"),
        ("fasterrcnn", "rpn.head"),
        ("fasterrcnn", "roi_heads.box_predictor"),
    ],
)
def test_what_is_no_number_is_no_verdict(architecture: str, place: str) -> None:
    bundle = trained(architecture)
    with torch.no_grad():
        next(bundle.network.get_submodule(place).parameters()).fill_(float("nan"))
    with pytest.raises(OutputError) as refused:
        FrozenDetector(bundle, "cpu").inspect(frame(64, 64))
    assert refused.value.code == "detections_not_finite"
    assert refused.value.hint


def test_a_detector_that_proposes_no_region_is_compared_and_answers_with_no_box() -> None:
    bundle = trained("fasterrcnn")
    deltas: Any = bundle.network.get_submodule("rpn.head.bbox_pred")
    with torch.no_grad():
        # Every proposal is a point, which is too small to look at.
        deltas.bias.fill_(-100)
    pixels = frame(75, 133)
    before = frame_candidates(bundle.network, pixels, bundle.info.preprocessing, CPU)
    assert before.regions is not None
    assert len(before.regions) == 0
    model = FrozenDetector(bundle, device="cpu")
    after = model.candidates(pixels, before.regions)
    assert before.largest_difference(after) < 1e-4
    assert len(model.detections(pixels)) == 0
