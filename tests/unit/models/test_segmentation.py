"""Networks are built as specified, with nothing in them that is never used."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models import ModelSpec, NormSpec, build_model
from norm import CrossIterationBatchNorm2d, convert_batchnorm

SPECS = [
    ModelSpec(encoder="resnet18", encoder_depth=3),
    ModelSpec(encoder="mobilenet_v2"),
    ModelSpec(encoder="mobilenet_v3_small"),
    ModelSpec(encoder="mobilenet_v3_large"),
    ModelSpec(encoder="efficientnet_b0"),
    ModelSpec(architecture="fpn", encoder="resnet18"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture}-{spec.encoder}")
def test_every_normalization_of_a_network_becomes_cbn_and_it_trains(spec: ModelSpec) -> None:
    network = build_model(spec, class_count=2, in_channels=1)
    side_px = 2 * spec.stride_px
    network, report = convert_batchnorm(network, torch.zeros(2, 1, side_px, side_px), kind="cbn")
    # The decoder of the FPN normalizes by groups.
    assert {entry.kind for entry in report.left} <= {"gn"}
    logits = network(torch.randn(2, 1, side_px, side_px))
    assert logits.shape == (2, 2, side_px, side_px)
    logits.sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == []


def test_the_first_answer_is_how_rare_defects_are() -> None:
    network = build_model(
        SPECS[0], class_count=2, in_channels=3, foreground_rate=(0.001, 0.2)
    ).eval()
    with torch.no_grad():
        probabilities = network(torch.zeros(1, 3, 64, 64)).sigmoid().mean((0, 2, 3))
    assert 0.0001 < float(probabilities[0]) < 0.01
    assert 0.05 < float(probabilities[1]) < 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder": "resnet999"},
        {"encoder_depth": 2},
        {"encoder_depth": 3, "decoder_channels": [16, 8]},
        {"architecture": "fpn", "decoder_channels": [64, 32, 16, 16, 8]},
        {"architecture": "fpn", "encoder_depth": 3},
        {"architecture": "fpn", "encoder": "convnext_atto", "encoder_depth": 4},
        {"architecture": "deeplabv3plus", "encoder_depth": 4},
        {"architecture": "unet", "output_stride": 8},
        {"architecture": "segnet"},
        {"weights": "imagenet"},
    ],
)
def test_a_network_that_cannot_be_built_is_refused_before_anything_runs(
    fields: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(fields)


def test_options_of_cbn_belong_to_cbn_alone() -> None:
    assert NormSpec(kind="cbn", window_size=4).options == {"window_size": 4}
    assert NormSpec(kind="brn").options == {}
    with pytest.raises(ValidationError, match="window_size"):
        NormSpec(kind="bn", window_size=4)
    with pytest.raises(ValidationError, match="history 'ring'"):
        NormSpec(kind="cbn", history="exponential", variance="paper")
    with pytest.raises(ValidationError, match="history 'ring'"):
        NormSpec(kind="cbn", history="exponential", slope_rank=8)
    with pytest.raises(ValidationError, match="window_size"):
        NormSpec(window_size=4)


def test_without_a_wish_single_frames_pool_a_window_and_larger_batches_do_not() -> None:
    assert NormSpec().for_batch(1) == NormSpec(kind="cbn")
    assert NormSpec().for_batch(2) == NormSpec(kind="bn")
    wish = NormSpec(kind="cbn", window_size=4)
    assert wish.for_batch(16) == wish


def test_a_job_can_ask_for_slopes_as_factors() -> None:
    asked = NormSpec(kind="cbn", slope_rank=8)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    example = torch.rand(1, 3, 16, 16)
    converted, _ = convert_batchnorm(network, example, kind="cbn", **asked.options)
    layers = [each for each in converted.modules() if isinstance(each, CrossIterationBatchNorm2d)]
    assert [layer.slope_rank for layer in layers] == [8]
