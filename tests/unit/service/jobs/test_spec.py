"""A job's specification is what the training program understands, default for default."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.jobs.spec import JobSpec, run_config
from training.config import CacheSection, DataSection, RunConfig

MANIFEST, ROOT = Path("/storage/manifests/a.jsonl"), Path("/storage")


def config_of(wishes: dict[str, Any], device: str = "auto") -> RunConfig:
    spec = JobSpec.model_validate({"version": "ver_1", **wishes})
    return RunConfig.model_validate(run_config(spec, manifest=MANIFEST, root=ROOT, device=device))


def test_what_is_left_out_is_what_training_itself_would_choose() -> None:
    # The one thing training cannot know is where the jobs share their decoded frames.
    cache = CacheSection(directory=ROOT / "decoded")
    assert config_of({}) == RunConfig(data=DataSection(manifest=MANIFEST, root=ROOT, cache=cache))


def test_how_frames_are_read_reaches_the_run() -> None:
    data = config_of({"data": {"workers": 3, "cache": {"max_bytes": 0}}}).data
    assert (data.workers, data.cache.max_bytes, data.root) == (3, 0, ROOT)


def test_every_field_of_a_job_reaches_the_run() -> None:
    wishes: dict[str, Any] = {
        "model": {"architecture": "fpn", "encoder": "resnet34"},
        "norm": {"kind": "brn"},
        "resolution": {"mode": "crop", "height_px": 128, "width_px": 256, "defect_rate": 0.25},
        "augmentation": {
            "flips": False,
            "light": False,
            "noise": False,
            "rotation_deg": 5.0,
            "gradient": 0.2,
            "blur_px": 1.0,
            "shot_noise": 0.01,
            "paste_rate": 0.3,
        },
        "sampling": {"defect_rate": 0.4},
        "batch_size": 1,
        "budget": {"max_epochs": 3, "max_steps": 7, "max_minutes": 1.5},
        "optimizer": {
            "learning_rate": 0.1,
            "weight_decay": 0.2,
            "warmup_steps": 3,
            "max_gradient_norm": 1.0,
        },
        "early_stopping": None,
        "seed": 11,
        "device": "cpu",
        "precision": "float32",
        "checkpoint_every_s": 5.0,
        "loss": {"kind": "focal", "alpha": 0.4, "gamma": 1.0, "dice_weight": 0.5},
        "accumulation_steps": 4,
        "memory": {
            "limit_bytes": 5_000_000_000,
            "ladder": ["crops", "tiles"],
            "activation_checkpointing": True,
            "look_tile_px": 512,
        },
        "dry_run": True,
        "ema": {"decay": 0.9},
        "devices": 2,
        "recalibration": {"max_frames": 8, "max_cost": 0.5},
    }
    config = config_of(wishes).model_dump(mode="json")
    for name, wish in wishes.items():
        if isinstance(wish, dict):
            assert wish.items() <= config[name].items(), name
        else:
            assert config[name] == wish, name


def test_a_resized_job_reaches_the_run() -> None:
    config = config_of({"resolution": {"mode": "resized", "factor": 0.25}})
    assert config.resize_factor == 0.25
    assert config_of({}).resize_factor == 1.0


def test_a_job_without_a_device_of_its_own_trains_on_the_installations() -> None:
    assert config_of({}, device="cuda:1").device == "cuda:1"
    assert config_of({"device": "cpu"}, device="cuda:1").device == "cpu"


@pytest.mark.parametrize(
    "wish",
    [
        {"batchsize": 2},
        {"batch_size": 0},
        {"resolution": {"mode": "crop", "height_px": 8, "width_px": 512}},
        {"resolution": {"mode": "tiles"}},
        {"resolution": {"mode": "resized"}},
        {"resolution": {"mode": "resized", "factor": 1}},
        {"resolution": {"mode": "resized", "factor": 0.01}},
        {"device": "gpu"},
        {"budget": {"max_steps": 0}},
    ],
)
def test_what_training_would_refuse_is_refused_before_it_is_queued(
    wish: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate({"version": "ver_1", **wish})
