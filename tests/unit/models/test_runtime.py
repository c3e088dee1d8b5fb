"""The frozen model answers as the trained network would, at any frame size."""

import cv2
import numpy as np
import pytest
import torch

from models import (
    Bundle,
    BundleInfo,
    ClassThreshold,
    FrozenModel,
    Inspection,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
    frame_probabilities,
    frame_to_tensor,
    pad_to_multiple,
    resize_pixels,
    resized_size,
)
from models.engines import TorchEngine
from models.errors import OutputError

SPECS = {
    "unet": ModelSpec(
        encoder="mobilenet_v3_small", encoder_depth=4, decoder_channels=(32, 16, 8, 8)
    ),
    "resnet": ModelSpec(encoder="resnet18", encoder_depth=3, decoder_channels=(16, 8, 8)),
    "fpn": ModelSpec(architecture="fpn", encoder="mobilenet_v2"),
}


def trained(spec: ModelSpec, kind: str = "cbn") -> Bundle:
    """A network with running statistics far from their start, as training leaves them."""
    info = BundleInfo(
        classes=("pit",),
        model=spec,
        norm=NormSpec.model_validate({"kind": kind}),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=spec.stride_px
        ),
        operating_point=OperatingPoint(classes={"pit": ClassThreshold(threshold=0.5)}),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    network = build_network(info).train()
    with torch.no_grad():
        for _ in range(5):
            network(2 * torch.randn(2, 1, 64, 64) + 1)
    return Bundle(info=info, network=network.eval())


def frame(height_px: int, width_px: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (height_px, width_px), dtype=np.uint8)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", [(64, 64), (75, 133)])
def test_folding_changes_no_probability(name: str, size: tuple[int, int]) -> None:
    bundle = trained(SPECS[name])
    pixels = frame(*size)
    tensor, _ = frame_to_tensor(pixels, bundle.info.preprocessing)
    with torch.no_grad():
        padded = pad_to_multiple(tensor[None], bundle.info.preprocessing.stride_px)
        expected = bundle.network(padded).sigmoid()[0, :, : size[0], : size[1]].numpy()

    model = FrozenModel(bundle, device="cpu")
    probabilities = model.probabilities(pixels)

    assert not model.fold_report.left, "every normalization of these networks follows a convolution"
    assert probabilities.shape == (1, *size)
    assert probabilities.dtype == np.float32
    # Float32 products in another order; the maps themselves span most of [0, 1].
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)


def test_the_verdict_follows_from_the_defects() -> None:
    bundle = trained(SPECS["unet"])
    never = OperatingPoint(classes={"pit": ClassThreshold(threshold=1.1)})
    always = OperatingPoint(classes={"pit": ClassThreshold(threshold=0.0)})
    pixels = frame(50, 70)

    silent = FrozenModel(
        Bundle(bundle.info.model_copy(update={"operating_point": never}), bundle.network), "cpu"
    ).inspect(pixels)
    assert (silent.verdict, silent.defects) == ("OK", ())

    bundle = trained(SPECS["unet"])
    loud = FrozenModel(
        Bundle(bundle.info.model_copy(update={"operating_point": always}), bundle.network), "cpu"
    ).inspect(pixels)
    assert loud.verdict == "NG"
    assert loud.defects[0].area_px == 50 * 70
    assert set(loud.timings_ms) == {"model", "postprocess"}


def test_a_group_norm_model_is_served_as_it_is() -> None:
    bundle = trained(SPECS["unet"], kind="gn")
    model = FrozenModel(bundle, device="cpu")
    assert model.probabilities(frame(64, 64)).shape == (1, 64, 64)


@pytest.mark.parametrize("size", [(64, 64), (75, 133)])
@pytest.mark.parametrize("factor", [0.5, 0.3])
def test_a_model_of_resized_frames_answers_at_the_frames_own_size_and_says_so(
    size: tuple[int, int], factor: float
) -> None:
    bundle = trained(SPECS["resnet"])
    native = FrozenModel(trained(SPECS["resnet"]), "cpu")
    preprocessing = bundle.info.preprocessing.model_copy(update={"resize_factor": factor})
    info = bundle.info.model_copy(update={"preprocessing": preprocessing})
    model = FrozenModel(Bundle(info=info, network=bundle.network), "cpu")
    pixels = frame(*size)
    inspection = model.inspect(pixels)
    assert inspection.probabilities is not None
    assert inspection.probabilities.shape == (1, *size)
    assert any("frame resized" in note for note in inspection.notes)
    # The same network on a frame that was resized by hand, then back by OpenCV's half-pixel rule.
    small = resize_pixels(pixels[:, :, None], resized_size(*size, factor))
    expected = cv2.resize(
        native.probabilities(small)[0], size[::-1], interpolation=cv2.INTER_LINEAR
    )
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(inspection.probabilities[0], expected, rtol=0, atol=1e-5)


def test_a_constant_answer_stays_constant_at_the_frames_own_size() -> None:
    preprocessing = trained(SPECS["resnet"]).info.preprocessing
    half = preprocessing.model_copy(update={"resize_factor": 0.5})

    class Constant(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.full_like(batch, -1.25)

    answer, _ = frame_probabilities(Constant(), frame(75, 133), half, torch.device("cpu"))
    assert answer.shape == (1, 75, 133)
    np.testing.assert_allclose(answer, 1 / (1 + np.exp(1.25)), rtol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_frames_that_go_together_are_judged_as_each_alone(name: str) -> None:
    bundle = trained(SPECS[name])
    model = FrozenModel(bundle, "cpu")
    frames = [np.roll(frame(75, 133), 7 * i, axis=1) for i in range(5)]
    alone = [model.inspect(pixels) for pixels in frames]
    together = model.inspect_together(frames)
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Inspection)
        assert one.probabilities is not None
        assert other.probabilities is not None
        assert np.ptp(one.probabilities) > 0.01, "a constant map would prove nothing"
        # As `inspect_together` states.
        np.testing.assert_allclose(other.probabilities, one.probabilities, rtol=0, atol=1e-5)
        assert (other.verdict, other.notes) == (one.verdict, one.notes)


def test_a_frame_without_an_answer_spoils_no_other_of_its_batch() -> None:
    bundle = trained(SPECS["resnet"])
    model = FrozenModel(bundle, "cpu")
    honest = model.network

    class Spoiled(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = honest(batch)
            answer[1] = torch.nan
            return answer

    model.use(TorchEngine(Spoiled(), model.info.preprocessing, model.device))
    first, second, third = model.inspect_together([frame(64, 64)] * 3)
    assert isinstance(first, Inspection)
    assert isinstance(second, OutputError)
    assert isinstance(third, Inspection)
