"""Whatever architecture and encoder a job may ask for, the network trains, folds and ships."""

from pathlib import Path

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
    pad_to_multiple,
    write_bundle,
)
from models.encoders import ENCODERS
from norm import convert_batchnorm, restore_batchnorm

SEGMENTERS = [
    (architecture.name, encoder)
    for architecture in ARCHITECTURES.values()
    if architecture.task == "segmentation"
    for encoder in architecture.encoders
]
# The smallest of each family; its larger members differ in numbers alone.
FAMILIES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_atto")
# No multiple of any stride.
FRAME_PX = (37, 70)


def info_of(spec: ModelSpec) -> BundleInfo:
    return BundleInfo(
        classes=("pit", "scratch"),
        model=spec,
        norm=NormSpec(kind="cbn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=spec.stride_px
        ),
        operating_point=OperatingPoint(classes={}),
        dataset_digest="0" * 64,
    )


def ship(spec: ModelSpec, directory: Path) -> None:
    """Train a step at batch 1 under CBN, then go the way of every run to a frozen model."""
    torch.manual_seed(0)
    network = build_model(spec, class_count=2, in_channels=1)
    network, report = convert_batchnorm(network, example_input(spec, 1, count=2), kind="cbn")
    # A batch norm that stays one would judge by single frames; those of each image may stay.
    assert {entry.kind for entry in report.left} <= {"gn", "ln"}
    has_batch_norms = ENCODERS[spec.encoder].normalization == "batch"
    assert (len(report.converted) > 10) >= has_batch_norms

    frame = torch.randn(1, 1, *FRAME_PX)
    padded = pad_to_multiple(frame, spec.stride_px)
    logits = network.train()(padded)
    assert logits.shape == (1, 2, *padded.shape[-2:])
    logits.square().mean().backward()
    trained = [p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters()]
    assert all(trained)

    network = restore_batchnorm(network).eval()
    with torch.no_grad():
        expected = network(padded).sigmoid()[0, :, : FRAME_PX[0], : FRAME_PX[1]]
    write_bundle(directory, info_of(spec), network.state_dict())
    frozen = FrozenModel(load_bundle(directory), device="cpu")
    with torch.no_grad():
        served = frozen.network(padded).sigmoid()
    # Float32 rounding of folded products.
    torch.testing.assert_close(
        served[0, :, : FRAME_PX[0], : FRAME_PX[1]], expected, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [(name, encoder) for name, encoder in SEGMENTERS if encoder not in FAMILIES],
)
def test_every_other_combination_answers_each_pixel(architecture: str, encoder: str) -> None:
    spec = ModelSpec(architecture=architecture, encoder=encoder)
    # Shapes need no numbers; `python -m benchmarks.architectures` takes the minutes for them.
    with torch.device("meta"):
        network = build_model(spec, class_count=2, in_channels=3)
        padded = pad_to_multiple(torch.empty(1, 3, *FRAME_PX), spec.stride_px)
        assert network.eval()(padded).shape == (1, 2, *padded.shape[-2:])


@pytest.mark.parametrize("encoder", FAMILIES)
@pytest.mark.parametrize("architecture", sorted({name for name, _ in SEGMENTERS}))
def test_every_family_of_encoders_trains_at_batch_1_and_ships(
    architecture: str, encoder: str, tmp_path: Path
) -> None:
    ship(ModelSpec(architecture=architecture, encoder=encoder), tmp_path / "bundle")


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(encoder="convnext_atto", encoder_depth=3),
        ModelSpec(architecture="fpn", encoder_depth=4),
        ModelSpec(architecture="deeplabv3plus", output_stride=8),
        ModelSpec(architecture="linknet", encoder="convnext_atto", encoder_depth=4),
    ],
    ids=str,
)
def test_options_that_change_strides_ship_as_well(spec: ModelSpec, tmp_path: Path) -> None:
    ship(spec, tmp_path / "bundle")
