"""A frozen model answers as the trained network does, as far as rounding lets either of them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from data import Box, BoxLabels, Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset
from models import (
    Bundle,
    BundleInfo,
    FrozenDetector,
    FrozenModel,
    NormSpec,
    OperatingPoint,
    build_network,
)
from norm import plain_state_dict
from tests.training_runs import CLASSES, make_run, prepare_run
from training.errors import ParityError
from training.freezing_parity import (
    detection_parity,
    nudged_weights,
    segmentation_parity,
    told_rounding,
)
from training.preparation import Prepared

TOLERANCE = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "detection": {
        "architecture": "fasterrcnn",
        "encoder": "mobilenet_v3_small",
        "detection": {"pyramid_channels": 32},
    },
    "segmentation": {
        "encoder": "resnet18",
        "encoder_depth": 3,
        "decoder_channels": [8, 8, 8],
    },
}
# The layer that says the logits, or how far boxes are from their anchors.
LAST_LAYER = {"detection": "rpn.head.bbox_pred", "segmentation": "segmentation_head.0"}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn frames with a manifest of their masks and one of a box each."""
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, count=6, good_rate=0.2, seed=3, width_px=160, height_px=128)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(root / "segmentation.jsonl")
    label = BoxLabels((Box("pit", 20, 20, 30, 30),))
    boxed = tuple(dataclasses.replace(item, labels=label) for item in items)
    Manifest("detection", CLASSES, boxed).write(root / "detection.jsonl")
    return root


def prepared_network(directory: Path, frames: Path, task: str, *, scale: float) -> Prepared:
    """An untrained network whose last layer says so many times what it would."""
    data = {"manifest": str(frames / f"{task}.jsonl"), "root": str(frames), "workers": 0}
    run = make_run(directory, frames, data=data, model=MODELS[task], norm={"kind": "bn"})
    prepared = prepare_run(run)
    layer: Any = prepared.network.get_submodule(LAST_LAYER[task])
    with torch.no_grad():
        layer.weight.mul_(scale)
        # A prior far below one half would leave no probability that rounding can move.
        layer.bias.zero_()
    return prepared


def parity(prepared: Prepared, *, tolerance: float, fault: float = 0) -> dict[str, Any]:
    """Freeze the network, with an error in each of its weights, and compare."""
    task = prepared.model.task
    info = BundleInfo(
        task=task,
        classes=prepared.manifest.classes,
        model=prepared.model,
        norm=NormSpec(kind="bn"),
        preprocessing=prepared.preprocessing,
        operating_point=OperatingPoint(classes={}),
        dataset_digest=prepared.manifest.digest,
    )
    network = build_network(info)
    network.load_state_dict(plain_state_dict(prepared.network))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1 + fault)
    bundle = Bundle(info=info, network=network.eval())
    if task == "detection":
        return detection_parity(prepared, FrozenDetector(bundle, "cpu"), tolerance)
    return segmentation_parity(prepared, FrozenModel(bundle, "cpu"), tolerance)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_most_networks_differ_by_less_than_the_tolerance_and_nothing_more_is_asked(
    tmp_path: Path, frames: Path, task: str
) -> None:
    prepared = prepared_network(tmp_path / "run", frames, task, scale=1)
    found = parity(prepared, tolerance=TOLERANCE)
    assert found["max_difference"] <= found["tolerance"] == TOLERANCE
    assert found["rounding"] is None
    assert told_rounding(found) is None
    with pytest.raises(ParityError, match="the tolerance is 1e-04") as told:
        parity(prepared, tolerance=TOLERANCE, fault=0.05)
    assert "must not be served" in str(told.value.hint)


@pytest.mark.parametrize(("task", "scale"), [("segmentation", 1e3), ("detection", 1e5)])
def test_a_network_that_rounding_moves_further_passes_is_told_of_and_hides_no_fault(
    tmp_path: Path, frames: Path, task: str, scale: float
) -> None:
    prepared = prepared_network(tmp_path / "run", frames, task, scale=scale)
    found = parity(prepared, tolerance=TOLERANCE)
    assert TOLERANCE < found["max_difference"] <= found["tolerance"]
    assert found["rounding"] > TOLERANCE / 4
    said = told_rounding(found)
    assert said is not None
    assert f"{found['rounding']:.0e}" in said
    with pytest.raises(ParityError) as told:
        parity(prepared, tolerance=TOLERANCE, fault=0.05)
    assert "must not be served" in str(told.value.hint)


@pytest.mark.parametrize(("task", "scale"), [("segmentation", 1e3), ("detection", 1e5)])
def test_a_network_of_which_rounding_decides_what_it_says_is_refused_with_the_remedy(
    tmp_path: Path, frames: Path, task: str, scale: float
) -> None:
    prepared = prepared_network(tmp_path / "run", frames, task, scale=scale)
    with pytest.raises(ParityError, match="its own rounding changes them") as told:
        # A hundred times this is less than what rounding does.
        parity(prepared, tolerance=TOLERANCE / 1000)
    assert "smaller learning rate" in str(told.value.hint)


def test_weights_are_nudged_by_one_unit_in_their_last_place_and_come_back() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    before = [weight.detach().clone() for weight in network.parameters()]
    with nudged_weights(network):
        for weight, known in zip(network.parameters(), before, strict=True):
            neighbours = [torch.nextafter(known, torch.tensor(end)) for end in (-9e9, 9e9)]
            assert ((weight == neighbours[0]) | (weight == neighbours[1])).all()
    for weight, known in zip(network.parameters(), before, strict=True):
        assert torch.equal(weight, known)
