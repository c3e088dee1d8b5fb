"""A bundle on disk is whole, readable and exactly what was written, or it is refused."""

import json
from pathlib import Path

import pytest
import torch

from models import (
    BundleError,
    BundleInfo,
    ClassThreshold,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
    load_bundle,
    write_bundle,
)

LIGHT = ModelSpec(encoder="mobilenet_v3_small", encoder_depth=3, decoder_channels=(16, 8, 8))


def info(norm: NormSpec | None = None) -> BundleInfo:
    return BundleInfo(
        classes=("pit", "scratch"),
        model=LIGHT,
        norm=norm or NormSpec(),
        preprocessing=Preprocessing(
            in_channels=1,
            bit_depth=8,
            mean=(120.0,),
            std=(40.0,),
            stride_px=LIGHT.stride_px,
        ),
        operating_point=OperatingPoint(
            classes={"pit": ClassThreshold(), "scratch": ClassThreshold()}
        ),
        dataset_digest="0" * 64,
    )


def written(path: Path, norm: NormSpec | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    weights = build_network(info(norm)).state_dict()
    write_bundle(path, info(norm), weights)
    return weights


@pytest.mark.parametrize("kind", ["cbn", "gn"])
def test_weights_come_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    weights = written(tmp_path / "bundle", NormSpec.model_validate({"kind": kind}))
    bundle = load_bundle(tmp_path / "bundle")
    assert not bundle.network.training
    loaded = bundle.network.state_dict()
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(loaded[name], tensor), name


def test_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    written(tmp_path / "bundle")
    names = sorted(path.name for path in (tmp_path / "bundle").iterdir())
    assert names == ["bundle.json", "weights.safetensors"]
    assert not list(tmp_path.glob("*.partial"))


def test_one_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    written(tmp_path / "bundle")
    path = tmp_path / "bundle" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256") as refused:
        load_bundle(tmp_path / "bundle")
    assert refused.value.code == "bundle_damaged"
    assert refused.value.file == "weights.safetensors"
    assert refused.value.hint


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        load_bundle(tmp_path / "nothing")

    written(tmp_path / "bundle")
    info_path = tmp_path / "bundle" / "bundle.json"
    fields = json.loads(info_path.read_text())
    info_path.write_text(json.dumps(fields | {"format_version": 2}))
    with pytest.raises(BundleError, match="format_version"):
        load_bundle(tmp_path / "bundle")

    (tmp_path / "bundle" / "weights.safetensors").unlink()
    info_path.write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="weights are missing"):
        load_bundle(tmp_path / "bundle")


def test_a_bundle_from_before_bayer_patterns_is_one_of_ordinary_pictures(tmp_path: Path) -> None:
    written(tmp_path / "bundle")
    info_path = tmp_path / "bundle" / "bundle.json"
    fields = json.loads(info_path.read_text())
    assert fields["preprocessing"].pop("bayer", "absent") is None
    info_path.write_text(json.dumps(fields))
    assert load_bundle(tmp_path / "bundle").info.preprocessing.bayer is None

    fields["preprocessing"]["bayer"] = "RGB"
    info_path.write_text(json.dumps(fields))
    with pytest.raises(BundleError, match=r"preprocessing\.bayer"):
        load_bundle(tmp_path / "bundle")


def test_a_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    written(tmp_path / "bundle")
    (tmp_path / "bundle" / "left-over").write_text("from an older format")
    written(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "left-over").exists()
    load_bundle(tmp_path / "bundle")
