"""Before the first step: what a network starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data import Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset
from models import (
    BundleInfo,
    ModelsError,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
    write_bundle,
)
from norm import plain_state_dict
from training.config import RunConfig
from training.events import EventLog, read_events
from training.preparation import prepare

CLASSES = ("scratch", "pit", "stain")
LIGHT = ModelSpec(encoder="mobilenet_v3_small", encoder_depth=3, decoder_channels=(16, 8, 8))


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, count=12, good_rate=0.25, seed=3, width_px=96, height_px=80)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(root / "manifest.jsonl")
    return root


def config_of(frames: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"manifest": str(frames / "manifest.jsonl"), "root": str(frames)},
            "model": LIGHT.model_dump(),
            "batch_size": 1,
            "device": "cpu",
            **changes,
        }
    )


def write_earlier(path: Path, classes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    info = BundleInfo(
        classes=classes,
        model=LIGHT,
        norm=NormSpec(kind="cbn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=LIGHT.stride_px
        ),
        operating_point=OperatingPoint(classes={}),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(7)
    weights: dict[str, torch.Tensor] = build_network(info).state_dict()
    write_bundle(path, info, weights)
    return weights


def test_a_run_starts_where_an_earlier_model_ended_and_says_what_is_new(
    frames: Path, tmp_path: Path
) -> None:
    earlier = write_earlier(tmp_path / "bundle", ("pit", "scratch"))
    events = EventLog(tmp_path / "events.jsonl")
    config = config_of(frames, weights={"bundle": str(tmp_path / "bundle")})
    prepared = prepare(config, events)
    events.close()

    state = plain_state_dict(prepared.network)
    for name, tensor in earlier.items():
        if not name.startswith("segmentation_head."):
            assert torch.equal(state[name], tensor), name
    # Its second class is ours first.
    head = "segmentation_head.0.weight"
    assert torch.equal(state[head][:2], earlier[head].flip(0))
    assert prepared.weights is not None
    assert not prepared.weights.random
    written = read_events(tmp_path / "events.jsonl")
    assert any(event["kind"] == "weights" for event in written)
    warnings = [event["detail"] for event in written if event["kind"] == "warning"]
    assert any("rows of scratch, pit taken by name" in warning for warning in warnings)


def test_weights_that_do_not_fit_fail_the_run_before_its_first_step(
    frames: Path, tmp_path: Path
) -> None:
    events = EventLog(tmp_path / "events.jsonl")
    for weights, code in (
        ({"bundle": str(tmp_path / "nowhere")}, "bundle_incomplete"),
        ({"file": str(tmp_path / "nowhere.safetensors")}, "weights_missing"),
    ):
        with pytest.raises(ModelsError) as refused:
            prepare(config_of(frames, weights=weights), events)
        assert refused.value.code == code
        assert refused.value.hint
    events.close()
