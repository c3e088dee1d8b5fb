"""From a decoded frame to the tensor a network sees; training and serving share these lines."""

from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.errors import FrameError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
# What data.BayerPattern says too; the rooms don't know each other, and mypy compares the two where
# training and service hand one to the other.
BayerPattern = Literal["RGGB", "BGGR", "GRBG", "GBRG"]


class Preprocessing(BaseModel):
    """How frames become tensors.

    Attributes:
        in_channels: 1 for a model of mono frames, 3 for colour.
        bit_depth: What the camera delivered in training.
        mean: Per channel, in the frames' own units (0 to 255 or 0 to 65535).
        std: Per channel, in the same units.
        stride_px: Height and width are padded to a multiple of it.
        bayer: The pattern if the camera delivers raw mosaics; whoever reads a frame's file
            demosaics it before a model sees its pixels.
        resize_factor: Sides of the frame as the network sees it, as a share of its own.  Below 1
            only where a person asked for the comparison with full resolution.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_channels: Literal[1, 3]
    bit_depth: Literal[8, 16]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride_px: int
    bayer: BayerPattern | None = None
    resize_factor: Annotated[float, Field(gt=0, le=1)] = 1.0


def frame_to_tensor(pixels: Pixels, preprocessing: Preprocessing) -> tuple[Tensor, list[str]]:
    """Standardize one frame, at its native size unless the model is one of resized frames.

    Args:
        pixels: (H, W) or (H, W, C), uint8 or uint16.
        preprocessing: The model's.

    Returns:
        A float32 tensor (C, h, w) of `resized_size`, and notes on what was converted.

    Raises:
        FrameError: See `model_pixels`.
    """
    pixels, notes = model_pixels(pixels, preprocessing)
    tensor = torch.empty(preprocessing.in_channels, *pixels.shape[:2])
    standardize_into(tensor, pixels, preprocessing)
    return tensor, notes


def standardize_into(tensor: Tensor, pixels: Pixels, preprocessing: Preprocessing) -> None:
    """Standardize a frame, as `model_pixels` returns it, into a tensor or a part of one.

    One channel at a time into the final layout: a float copy in camera layout would be 60 MB more
    at 5 megapixels, and its transposition the slowest step.

    Args:
        tensor: (C, H, W) float32, overwritten.
        pixels: (H, W, C) uint8 or uint16.
        preprocessing: The model's.
    """
    for channel in range(preprocessing.in_channels):
        # A channel by itself lies pixel beside pixel, so that it is converted many at a time.
        plane = cv2.extractChannel(pixels, channel)
        out = tensor[channel].numpy()
        np.subtract(plane, np.float32(preprocessing.mean[channel]), out=out)
        out /= np.float32(preprocessing.std[channel])


def repeat_edge(tensor: Tensor, height: int, width: int) -> None:
    """Fill what lies below and right of a frame in a tensor (C, H, W) by repeating its edge."""
    tensor[:, height:, :width] = tensor[:, height - 1 : height, :width]
    tensor[:, :, width:] = tensor[:, :, width - 1 : width]


def model_pixels(pixels: Pixels, preprocessing: Preprocessing) -> tuple[Pixels, list[str]]:
    """Return a frame as its model's camera would have delivered it, not yet standardized.

    Args:
        pixels: (H, W) or (H, W, C), uint8 or uint16.
        preprocessing: The model's.

    Returns:
        Pixels (h, w, in_channels) of `resized_size`, a view where nothing had to be converted, and
        notes on what was converted.

    Raises:
        FrameError: If the frame's depth differs from the model's, or a colour frame meets a model
            of mono frames: either means that the camera or its settings have changed.  Also if a
            mosaic was not demosaiced.
    """
    bit_depth = 8 * pixels.dtype.itemsize
    if bit_depth != preprocessing.bit_depth:
        raise FrameError(
            "bit_depth_mismatch",
            f"the frame has {bit_depth} bits a channel, the model was trained on "
            f"{preprocessing.bit_depth}",
            hint="set the camera to the training frames' depth, or train on frames of this depth",
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    notes: list[str] = []
    channels = pixels.shape[2]
    if channels == 3 and preprocessing.in_channels == 1:
        raise FrameError(
            "channels_mismatch",
            "the frame is in colour, the model was trained on mono frames",
            hint="send mono frames, or train on colour frames",
        )
    if channels == 1 and preprocessing.bayer is not None:
        raise FrameError(
            "mosaic_not_demosaiced",
            f"the frame is mono, the model was trained on {preprocessing.bayer} frames demosaiced",
            hint="read the frame's file by data.decode_frame with the model's Bayer pattern",
        )
    size = resized_size(pixels.shape[0], pixels.shape[1], preprocessing.resize_factor)
    if size != pixels.shape[:2]:
        notes.append(
            f"frame resized from {pixels.shape[1]}x{pixels.shape[0]} to {size[1]}x{size[0]} px, as "
            "the model was trained; defects of few pixels may be lost"
        )
        pixels = resize_pixels(pixels, size)
    if channels < preprocessing.in_channels:
        notes.append("mono frame repeated in the model's three channels")
        repeated: Any = np.broadcast_to(pixels, (*size, preprocessing.in_channels))
        pixels = repeated
    return pixels, notes


def resized_size(height_px: int, width_px: int, factor: float) -> tuple[int, int]:
    """Return the height and width of a frame resized by ``factor``, at least a pixel each."""
    if factor == 1:
        return height_px, width_px
    return max(1, round(height_px * factor)), max(1, round(width_px * factor))


def resize_pixels(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a frame (H, W, C) shrunk to ``size`` (h, w): each pixel the mean of what it covers.

    Sides that are no multiple of the new ones are weighted by the area of each pixel's share.
    """
    if size == pixels.shape[:2]:
        return pixels
    resized: Any = cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    # OpenCV drops the axis of a single channel.
    return np.asarray(resized.reshape(*size, pixels.shape[2]))


def pad_to_multiple(batch: Tensor, stride_px: int) -> Tensor:
    """Pad (N, C, H, W) at the bottom and right to multiples of ``stride_px`` by repeating the edge.

    Repeating the edge instead of adding zeros keeps the border free of a step that a network
    trained on scratches would report.
    """
    height, width = batch.shape[-2:]
    bottom = -height % stride_px
    right = -width % stride_px
    if bottom == 0 and right == 0:
        return batch
    return F.pad(batch, (0, right, 0, bottom), mode="replicate")


def pad_pixels(pixels: Pixels, stride_px: int) -> Pixels:
    """Pad a frame (H, W, C) as `pad_to_multiple` does, before it is standardized.

    A quarter of the bytes of the standardized frame are moved, and each pixel standardizes to the
    same number wherever it was repeated.  A frame that needs no padding is returned as it is.
    """
    height, width, channels = pixels.shape
    bottom, right = -height % stride_px, -width % stride_px
    if bottom == 0 and right == 0:
        return pixels
    padded: Any = cv2.copyMakeBorder(
        np.ascontiguousarray(pixels), 0, bottom, 0, right, cv2.BORDER_REPLICATE
    )
    # OpenCV drops the axis of a single channel.
    return np.asarray(padded.reshape(height + bottom, width + right, channels))
