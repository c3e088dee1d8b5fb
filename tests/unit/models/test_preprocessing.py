"""Frames become tensors the same way in training and in serving."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import (
    FrameError,
    Preprocessing,
    frame_to_tensor,
    pad_to_multiple,
    resize_pixels,
    resized_size,
)

MONO = Preprocessing(in_channels=1, bit_depth=8, mean=(100.0,), std=(50.0,), stride_px=32)
COLOUR = Preprocessing(
    in_channels=3, bit_depth=16, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), stride_px=32
)


def test_pixels_are_standardized_in_their_own_units() -> None:
    pixels = np.array([[0, 100, 150]], np.uint8)
    tensor, notes = frame_to_tensor(pixels, MONO)
    assert not notes
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor, torch.tensor([[[-2.0, 0.0, 1.0]]]))


def test_sixteen_bits_keep_their_steps() -> None:
    pixels = np.zeros((1, 2, 3), np.uint16)
    pixels[0, 1] = (65_535, 65_534, 65_535)
    tensor, _ = frame_to_tensor(pixels, COLOUR)
    assert tensor[:, 0, 1].tolist() == [65_534.0, 32_766.0, 16_383.0]


def test_a_mono_frame_for_a_colour_model_is_converted_aloud() -> None:
    tensor, notes = frame_to_tensor(np.full((2, 2), 5, np.uint16), COLOUR)
    assert tensor.shape == (3, 2, 2)
    assert notes == ["mono frame repeated in the model's three channels"]


def test_another_depth_or_colour_for_a_mono_model_is_refused() -> None:
    with pytest.raises(FrameError, match="16 bits") as depth:
        frame_to_tensor(np.zeros((2, 2), np.uint16), MONO)
    assert depth.value.code == "bit_depth_mismatch"
    with pytest.raises(FrameError, match="colour") as colour:
        frame_to_tensor(np.zeros((2, 2, 3), np.uint8), MONO)
    assert colour.value.code == "channels_mismatch"
    assert colour.value.hint


def test_a_mosaic_is_refused_by_a_model_of_demosaiced_frames_and_never_taken_for_grey() -> None:
    preprocessing = COLOUR.model_copy(update={"bayer": "RGGB"})
    with pytest.raises(FrameError, match="RGGB") as caught:
        frame_to_tensor(np.zeros((2, 2), np.uint16), preprocessing)
    assert caught.value.code == "mosaic_not_demosaiced"
    colour = np.ones((2, 2, 3), np.uint16)
    assert torch.equal(
        frame_to_tensor(colour, preprocessing)[0], frame_to_tensor(colour, COLOUR)[0]
    )


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (32, 64), (2000, 2500)])
def test_padding_reaches_the_stride_and_leaves_the_frame_alone(size: tuple[int, int]) -> None:
    frame = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    padded = pad_to_multiple(frame, 32)
    height, width = size
    assert padded.shape[-2] % 32 == 0
    assert padded.shape[-1] % 32 == 0
    assert padded.shape[-2] - height < 32
    assert torch.equal(padded[..., :height, :width], frame)
    assert torch.equal(padded[..., -1, -1], frame[..., -1, -1])


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    factor=st.floats(1 / 16, 1),
    channels=st.sampled_from([1, 3]),
    level=st.integers(0, 65_535),
)
def test_a_constant_frame_of_any_size_stays_constant_when_resized(
    size: tuple[int, int], factor: float, channels: int, level: int
) -> None:
    pixels = np.full((*size, channels), level, np.uint16)
    # As the cache of decoded frames hands them over.
    pixels.flags.writeable = False
    resized = resize_pixels(pixels, resized_size(*size, factor))
    assert resized.shape == (*resized_size(*size, factor), channels)
    assert resized.dtype == np.uint16
    assert (resized == level).all()


def test_each_resized_pixel_is_the_mean_of_what_it_covers() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 84, 3), dtype=np.uint8)
    means = pixels.reshape(15, 4, 21, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize_pixels(pixels, (15, 21)) - means).max() <= 0.5
    # Three pixels over two: the middle one belongs to both by halves.
    row = np.array([[30, 60, 120]], np.uint8)[:, :, None]
    assert resize_pixels(row, (1, 2)).ravel().tolist() == [40, 100]


def test_a_model_of_resized_frames_says_so_with_each_frame() -> None:
    half = MONO.model_copy(update={"resize_factor": 0.5})
    tensor, notes = frame_to_tensor(np.full((75, 133), 150, np.uint8), half)
    assert tensor.shape == (1, 38, 66)
    assert torch.equal(tensor, torch.ones_like(tensor))
    (note,) = notes
    assert "from 133x75 to 66x38 px" in note
