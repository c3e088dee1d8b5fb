"""Random variation of training frames, at native resolution and with the labels alongside."""

import math
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.images import Pixels

# What the library calls the mask, and the planes of single defects that move with it.
_LABEL_TARGETS = ("mask", "instances")


class AugmentationSpec(BaseModel):
    """Which variations to apply; what is a number is switched off by 0.

    Attributes:
        flips: Mirror left-right and top-bottom, each with probability 1/2.
        light: Brightness and contrast within 12 %, gamma within 0.85 to 1.18, each half the time.
        noise: Gaussian sensor noise with a standard deviation of 0.2 to 1.2 % of full scale, half
            the time.
        rotation_deg: Turn by up to this angle either way, half the time; 0 to 45.
        gradient: Light that changes evenly over the picture, in any direction, from up to this
            share darker to as much brighter, half the time; 0 to 0.5.
        blur_px: Defocus (Gaussian, its standard deviation up to this) or motion (a straight line up
            to twice this and a pixel long), half the time; 0 to 5.
        shot_noise: Noise that grows with the signal as light does, its standard deviation at full
            scale up to this share of it, half the time; 0 to 0.05.
        paste_rate: Share of frames or windows into which a defect of another training frame is
            pasted; 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flips: bool = True
    light: bool = True
    noise: bool = True
    rotation_deg: float = Field(default=0.0, ge=0, le=45)
    gradient: float = Field(default=0.0, ge=0, le=0.5)
    blur_px: float = Field(default=0.0, ge=0, le=5)
    shot_noise: float = Field(default=0.0, ge=0, le=0.05)
    paste_rate: float = Field(default=0.0, ge=0, le=1)


class CropSpec(BaseModel):
    """A random window of each frame.

    Attributes:
        height_px: Window height.
        width_px: Window width.
        defect_rate: Probability that a defective frame's window shows one of its labelled pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height_px: int = Field(ge=32)
    width_px: int = Field(ge=32)
    defect_rate: float = Field(default=0.5, ge=0, le=1)


class Augmentation:
    """Mirrors, light, blur and noise of an `AugmentationSpec`, from the generator it is handed.

    Turning belongs to `data.window`, which knows what lies around the window, and pasting to
    `data.copy_paste`.  Several threads may use one object.
    """

    def __init__(self, spec: AugmentationSpec) -> None:
        self.spec = spec
        # A pipeline holds the generators of the frame it is at.
        self._of_thread = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        # What belongs to a thread stays; a data loader's process builds its own.
        return (Augmentation, (self.spec,))

    def apply(
        self, pixels: Pixels, labels: list[NDArray[Any]], rng: np.random.Generator
    ) -> tuple[Pixels, list[NDArray[Any]]]:
        """Vary one frame.

        Args:
            pixels: (H, W, C) uint8 or uint16.
            labels: One or two arrays (H, W, K), uint8 or uint16, mirrored alongside.
            rng: Source of every choice.

        Returns:
            Arrays of the same shapes and dtypes.
        """
        if self.spec.gradient and rng.random() < 0.5:
            pixels = light_unevenly(pixels, float(rng.uniform(0, self.spec.gradient)), rng)
        pipeline = self._pipeline()
        # Compose.set_random_seed gives every transform the same seed, and transforms that share a
        # seed draw the same first number: both mirrors would always fire together.
        seeds = rng.integers(0, 2**31, size=len(pipeline.transforms) + 1)
        pipeline.set_random_seed(int(seeds[-1]))
        for transform, seed in zip(pipeline.transforms, seeds, strict=False):
            transform.set_random_seed(int(seed))
        if pixels.dtype == np.uint16:
            # albumentations computes in uint8 or float32; 24 bits of mantissa carry 16 exactly.
            image = pixels.astype(np.float32) / np.float32(65535)
        else:
            image = np.asarray(pixels)
        targets = dict(zip(_LABEL_TARGETS, labels, strict=False))
        result = pipeline(image=image, **targets)
        varied = result["image"].reshape(pixels.shape)
        if pixels.dtype == np.uint16:
            varied = np.rint(np.clip(varied, 0, 1) * np.float32(65535)).astype(np.uint16)
        moved = [
            np.ascontiguousarray(result[name].reshape(before.shape))
            for name, before in targets.items()
        ]
        return np.ascontiguousarray(varied), moved

    def _pipeline(self) -> Any:
        if not hasattr(self._of_thread, "pipeline"):
            self._of_thread.pipeline = build_pipeline(self.spec)
        return self._of_thread.pipeline


def light_unevenly(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Light a frame from one side: darker by ``share`` at one end, brighter by it at the other.

    albumentations' own linear illumination is off by more than its intensity: towards some
    directions it darkens by three times as much.

    Args:
        pixels: (H, W, C) uint8 or uint16.
        share: Of the light, at the two ends.
        rng: Source of the direction.

    Returns:
        The same shape and dtype, clipped to its range.
    """
    direction = rng.uniform(0, 2 * math.pi)
    rows = np.linspace(-1, 1, pixels.shape[0], dtype=np.float32)[:, None] * math.sin(direction)
    columns = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32)[None] * math.cos(direction)
    across = (rows + columns) / (abs(math.sin(direction)) + abs(math.cos(direction)))
    lit = pixels * (1 + np.float32(share) * across.astype(np.float32))[:, :, None]
    top = np.iinfo(pixels.dtype).max
    varied: Pixels = np.rint(np.clip(lit, 0, top)).astype(pixels.dtype)
    return varied


def build_pipeline(spec: AugmentationSpec) -> Any:
    """Build the albumentations pipeline.

    Side effects:
        Sets NO_ALBUMENTATIONS_UPDATE: the library asks the package index for its newest version
        while it is imported, and factories are offline.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    # Imported here because it takes two to four seconds.
    import albumentations

    transforms: list[Any] = []
    if spec.flips:
        transforms += [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
    if spec.light:
        transforms += [
            albumentations.RandomBrightnessContrast(
                brightness_limit=0.12, contrast_limit=0.12, p=0.5
            ),
            albumentations.RandomGamma(gamma_limit=(85, 118), p=0.5),
        ]
    if spec.blur_px:
        transforms.append(_blur(albumentations, spec.blur_px))
    if spec.shot_noise:
        # The library adds it to linear light, gamma 2.2, with a variance of `scale` at full scale;
        # there the slope of the way back is 1 / 2.2.
        largest = (2.2 * spec.shot_noise) ** 2
        transforms.append(albumentations.ShotNoise(scale_range=(largest / 100, largest), p=0.5))
    if spec.noise:
        transforms.append(
            # A defect in one colour channel is rare; noise in each is what sensors do.
            albumentations.GaussNoise(std_range=(0.002, 0.012), per_channel=True, p=0.5)
        )
    others = dict.fromkeys(_LABEL_TARGETS[1:], "mask")
    return albumentations.Compose(transforms, additional_targets=others)


def _blur(albumentations: Any, blur_px: float) -> Any:
    longest_px = 2 * math.ceil(blur_px) + 1
    return albumentations.OneOf(
        [
            albumentations.GaussianBlur(sigma_limit=(min(0.3, blur_px), blur_px), blur_limit=0),
            # A line that is not centred would shift the picture away from its labels.
            albumentations.MotionBlur(
                blur_limit=(3, max(3, longest_px)), allow_shifted=False, direction_range=(0, 0)
            ),
        ],
        p=0.5,
    )
