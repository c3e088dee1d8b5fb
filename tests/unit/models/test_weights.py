"""A network starts from weights at hand as a whole, by name, and every tensor is accounted for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from models import (
    BundleInfo,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    WeightsError,
    WeightsReport,
    architecture_named,
    build_model,
    load_weights,
    read_bundle_source,
    read_weights_file,
    write_bundle,
)
from models.weights import Source

# Whoever publishes checkpoints under these names; random weights have the same names and sizes.
PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "resnet34": lambda: timm.create_model("resnet34"),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "mobilenet_v3_small": lambda: timm.create_model("mobilenetv3_small_100"),
    "convnext_atto": lambda: timm.create_model("convnext_atto"),
}


def built(encoder: str, *, in_channels: int = 3, classes: int = 1, depth: int = 5) -> nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec(encoder=encoder, encoder_depth=depth)
    return build_model(spec, class_count=classes, in_channels=in_channels)


def source_of(module: nn.Module, classes: tuple[str, ...] = ()) -> Source:
    state: dict[str, Tensor] = module.state_dict()
    return Source("brought.safetensors", "0" * 64, state, classes)


def start(network: nn.Module, source: Source, classes: tuple[str, ...] = ("pit",)) -> WeightsReport:
    return load_weights(network, architecture_named("unet"), source, classes)


def encoder_features(network: nn.Module, frames: Tensor) -> list[Tensor]:
    encoder: Any = network.encoder
    with torch.no_grad():
        features: list[Tensor] = encoder.eval()(frames)
    return features


@pytest.mark.parametrize("encoder", PUBLISHED)
def test_a_published_checkpoint_fills_the_encoder(encoder: str) -> None:
    torch.manual_seed(1)
    published = PUBLISHED[encoder]().eval()
    network = built(encoder)
    before = network.state_dict()["decoder.blocks.0.conv1.0.weight"].clone()
    report = start(network, source_of(published))
    state = network.state_dict()
    encoder_names = [name for name in state if name.startswith("encoder.")]
    assert set(report.loaded) == set(encoder_names)
    assert set(report.random.values()) == {"not in the file"}
    # What is left over is the classifier.
    assert len(report.unused) + len(report.loaded) == len(published.state_dict())
    assert not any("block" in name or "layer" in name for name in report.unused)
    assert torch.equal(state["decoder.blocks.0.conv1.0.weight"], before)


def test_a_filled_encoder_computes_what_the_published_network_does() -> None:
    torch.manual_seed(1)
    published = torchvision.models.resnet18(weights=None).eval()
    network = built("resnet18")
    start(network, source_of(published))
    frames = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = published.maxpool(published.relu(published.bn1(published.conv1(frames))))
        x = published.layer4(published.layer3(published.layer2(published.layer1(x))))
    torch.testing.assert_close(encoder_features(network, frames)[-1], x)


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3)])
def test_grey_frames_get_the_same_features_whatever_the_channels(theirs: int, ours: int) -> None:
    earlier, network = built("resnet18", in_channels=theirs), built("resnet18", in_channels=ours)
    report = start(network, source_of(earlier, ("pit",)))
    assert set(report.converted) == {"encoder.conv1.weight"}
    grey = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    before = encoder_features(earlier, grey.expand(-1, theirs, -1, -1))
    after = encoder_features(network, grey.expand(-1, ours, -1, -1))
    # Float32 sums in another order.
    torch.testing.assert_close(after[-1], before[-1], rtol=1e-3, atol=1e-4)


def test_rows_of_the_head_follow_the_names_of_the_classes() -> None:
    earlier, network = built("resnet18", classes=2), built("resnet18", classes=3)
    name = "segmentation_head.0.weight"
    fresh = network.state_dict()[name][0].clone()
    classes = ("stain", "scratch", "pit")
    report = start(network, source_of(earlier, ("pit", "scratch")), classes)
    theirs, ours = earlier.state_dict()[name], network.state_dict()[name]
    assert torch.equal(ours[2], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[0], fresh)
    assert report.converted[name] == "rows of scratch, pit taken by name"


def test_half_a_head_is_not_taken() -> None:
    classes = ("pit",)
    torch.manual_seed(0)
    other = build_model(ModelSpec(architecture="linknet"), class_count=1, in_channels=3)
    network = built("resnet18")
    bias = network.state_dict()["segmentation_head.0.bias"].clone()
    report = load_weights(network, architecture_named("unet"), source_of(other, classes), classes)
    assert torch.equal(network.state_dict()["segmentation_head.0.bias"], bias)
    assert report.random["segmentation_head.0.bias"] == "the rest of the head is not taken"


def test_a_file_that_does_not_name_its_classes_gives_no_head() -> None:
    report = start(built("resnet18"), source_of(built("resnet18")))
    assert set(report.random) == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert "which classes" in report.random["segmentation_head.0.weight"]


def test_a_shallower_encoder_takes_the_stages_it_has() -> None:
    torch.manual_seed(1)
    network = built("resnet18", depth=3)
    report = start(network, source_of(torchvision.models.resnet18(weights=None)))
    assert set(report.random.values()) == {"not in the file"}
    assert any(name.startswith("layer4.") for name in report.unused)


@pytest.mark.parametrize(
    ("theirs", "code"),
    [
        ("resnet34", "weights_of_another_encoder"),
        ("resnet50", "weights_of_another_encoder"),
        ("convnext_atto", "weights_match_nothing"),
    ],
)
def test_weights_of_another_encoder_are_refused_and_change_nothing(theirs: str, code: str) -> None:
    network = built("resnet18")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"brought\.safetensors") as refused:
        start(network, source_of(timm.create_model(theirs)))
    assert refused.value.code == code
    assert refused.value.hint
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file away\.safetensors") as missing:
        read_weights_file(tmp_path / "away.safetensors")
    assert missing.value.hint

    pickled = tmp_path / "pickled.safetensors"
    torch.save({"weight": torch.zeros(1)}, pickled)
    with pytest.raises(WeightsError, match="can't be read as safetensors") as unreadable:
        read_weights_file(pickled)
    assert unreadable.value.code == "weights_unreadable"

    diverged = tmp_path / "diverged.safetensors"
    save_file({"conv1.weight": torch.full((1,), torch.nan)}, diverged)
    with pytest.raises(WeightsError, match=r"conv1\.weight"):
        read_weights_file(diverged)


def test_an_earlier_model_gives_all_it_has_with_its_classes(tmp_path: Path) -> None:
    earlier = built("resnet18", in_channels=1, classes=2)
    info = BundleInfo(
        classes=("pit", "scratch"),
        model=ModelSpec(),
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=32
        ),
        operating_point=OperatingPoint(classes={}),
        dataset_digest="0" * 64,
    )
    written = write_bundle(tmp_path / "bundle", info, earlier.state_dict())
    source = read_bundle_source(tmp_path / "bundle")
    assert source.sha256 == written.weights_sha256
    network = build_model(ModelSpec(), class_count=2, in_channels=1)
    report = start(network, source, ("pit", "scratch"))
    assert not report.converted
    assert not report.random
    assert not report.unused
    for name, tensor in earlier.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
