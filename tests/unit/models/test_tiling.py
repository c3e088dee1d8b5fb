"""A frame in tiles gets the answer of the whole frame."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import FrozenModel, ModelSpec, build_model, example_input
from models.tiling import TILING_TOLERANCE, Tiling, bytes_per_px, measure_tiling
from norm import fold_batchnorm
from tests.unit.models.test_runtime import SPECS, frame, trained


def limited(name: str, memory_bytes: float | None) -> FrozenModel:
    model = FrozenModel(trained(SPECS[name]), "cpu")
    model.memory_bytes = memory_bytes
    return model


@pytest.mark.parametrize("size", [(512, 512), (437, 611)])
def test_a_tiled_frame_has_no_seam_and_the_answer_says_that_it_was_tiled(
    size: tuple[int, int],
) -> None:
    pixels = frame(*size)
    whole = limited("resnet", None).inspect(pixels)
    model = limited("resnet", None)
    model.memory_bytes = 250**2 * bytes_per_px(model.network, 1, 8)
    tiled = model.inspect(pixels)
    assert whole.probabilities is not None
    assert tiled.probabilities is not None
    assert np.ptp(whole.probabilities) > 0.1, "a constant map would show no seam"
    np.testing.assert_allclose(
        tiled.probabilities, whole.probabilities, rtol=0, atol=TILING_TOLERANCE
    )
    assert tiled.verdict == whole.verdict
    assert any("tiles" in note for note in tiled.notes)
    assert not any("tiles" in note for note in whole.notes)


def test_a_border_narrower_than_what_the_network_sees_would_leave_a_seam() -> None:
    """So that the test above could have failed."""
    model = limited("resnet", None)
    tiling = measure_tiling(model.network, 1, 8)
    assert tiling is not None
    pixels = frame(512, 512)
    whole = model.probabilities(pixels)
    for border_px, has_seam in ((8, True), (tiling.border_px, False)):
        narrow = Tiling(8, border_px, tiling.bytes_per_px)
        object.__setattr__(model, "_tiling", narrow)
        model.memory_bytes = (2 * border_px + 128) ** 2 * tiling.bytes_per_px
        seam = np.abs(model.probabilities(pixels) - whole).max()
        assert (seam > TILING_TOLERANCE) == has_seam


def test_a_frame_that_finds_no_memory_is_looked_at_in_tiles_and_the_answer_says_so() -> None:
    pixels = frame(512, 512)
    expected = limited("resnet", None).probabilities(pixels)
    model = limited("resnet", 1e12)
    asked_px = []

    def hold_at_most(_network: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        asked_px.append(inputs[0].shape[-1] * inputs[0].shape[-2])
        if asked_px[-1] > 400**2:
            raise torch.OutOfMemoryError("another program has taken it")

    model.network.register_forward_pre_hook(hold_at_most)
    for _ in range(2):
        inspection = model.inspect(pixels)
        assert any("tiles" in note for note in inspection.notes)
        assert inspection.probabilities is not None
        np.testing.assert_allclose(
            inspection.probabilities, expected, rtol=0, atol=TILING_TOLERANCE
        )
    # The second frame is not tried whole again.
    assert sum(area_px > 400**2 for area_px in asked_px) == 1


def test_memory_that_holds_the_frame_leaves_it_whole() -> None:
    inspection = limited("resnet", 1e12).inspect(frame(128, 128))
    assert not any("tiles" in note for note in inspection.notes)


def test_a_network_that_pools_the_whole_frame_is_never_cut() -> None:
    pooling = ModelSpec(architecture="deeplabv3plus", encoder="resnet18")
    for spec in (SPECS["unet"], pooling):
        network = build_model(spec, class_count=1, in_channels=1).eval()
        network, _ = fold_batchnorm(network, example_input(spec, 1))
        assert measure_tiling(network, 1, spec.stride_px) is None


def test_the_border_is_what_a_convolution_stack_sees() -> None:
    # Three 3x3 convolutions see three pixels on either side, one more dilated by four sees seven.
    layers = [torch.nn.Conv2d(1 if n == 0 else 4, 4, 3, padding=1) for n in range(3)]
    plain = torch.nn.Sequential(*layers).eval()
    dilated = torch.nn.Sequential(*layers, torch.nn.Conv2d(4, 1, 3, padding=4, dilation=4)).eval()
    for network, border_px in ((plain, 3), (dilated, 7)):
        tiling = measure_tiling(network, 1, 1)
        assert tiling is not None
        assert tiling.border_px == border_px


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    border=st.integers(0, 6),
    memory_px=st.integers(1, 40_000),
)
def test_tiles_cover_each_pixel_once_on_the_networks_grid(
    rows: int, columns: int, border: int, memory_px: int
) -> None:
    tiling = Tiling(stride_px=8, border_px=8 * border, bytes_per_px=1.0)
    size = (8 * rows, 8 * columns)
    covered = np.zeros(size, int)
    for tile in tiling.tiles(size, memory_px):
        covered[tile.kept] += 1
        for seen, kept, side in zip(tile.seen, tile.kept, size, strict=True):
            assert seen.start % 8 == 0
            assert seen.start == max(0, kept.start - tiling.border_px)
            assert seen.stop == min(side, kept.stop + tiling.border_px)
    assert (covered == 1).all()
