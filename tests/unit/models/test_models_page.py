"""What the page about models tells a developer to do works as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from models import (
    ARCHITECTURES,
    BundleInfo,
    FrozenModel,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_model,
    example_input,
    load_bundle,
    write_bundle,
)
from models.encoders import ENCODERS
from norm import convert_batchnorm, restore_batchnorm

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_pages_architecture_trains_and_ships_once_it_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - it is our own page.
    monkeypatch.setitem(ARCHITECTURES, "plain", names["PLAIN"])

    spec = ModelSpec(architecture="plain")
    assert (spec.task, spec.stride_px) == ("segmentation", 1)
    network = build_model(spec, class_count=2, in_channels=1)
    network, report = convert_batchnorm(network, example_input(spec, 1), kind="cbn")
    assert len(report.converted) == 1
    assert network.train()(torch.randn(1, 1, 37, 70)).shape == (1, 2, 37, 70)
    info = BundleInfo(
        classes=("pit", "scratch"),
        model=spec,
        norm=NormSpec(kind="cbn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=spec.stride_px
        ),
        operating_point=OperatingPoint(classes={}),
        dataset_digest="0" * 64,
    )
    write_bundle(tmp_path / "bundle", info, restore_batchnorm(network).state_dict())
    assert len(FrozenModel(load_bundle(tmp_path / "bundle"), "cpu").fold_report.folded) == 1


def test_the_page_names_every_architecture_and_its_schema_does() -> None:
    text = PAGE.read_text(encoding="utf-8")
    schema = ModelSpec.model_json_schema()["properties"]
    for name, architecture in ARCHITECTURES.items():
        if architecture.task == "segmentation":
            assert f"| `{name}` |" in text
    assert schema["architecture"]["enum"] == list(ARCHITECTURES)
    assert schema["encoder"]["enum"] == list(ENCODERS)
