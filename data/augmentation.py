"""Random variation of training frames, at native resolution and with the mask alongside."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data.images import Pixels


class AugmentationSpec(BaseModel):
    """Which variations to apply.

    Attributes:
        flips: Mirror left-right and top-bottom, each with probability 1/2.
        light: Brightness and contrast within 12 %, gamma within 0.85 to 1.18, each half the time.
        noise: Gaussian sensor noise with a standard deviation of 0.2 to 1.2 % of full scale, half
            the time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flips: bool = True
    light: bool = True
    noise: bool = True


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
    """Applies an `AugmentationSpec`; every choice comes from the generator it is handed."""

    def __init__(self, spec: AugmentationSpec) -> None:
        self.spec = spec
        self._pipeline = build_pipeline(spec)

    def apply(
        self, pixels: Pixels, mask: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[Pixels, NDArray[np.uint8]]:
        """Vary one frame.

        Args:
            pixels: (H, W, C) uint8 or uint16.
            mask: (H, W, K) uint8.
            rng: Source of every choice.

        Returns:
            Arrays of the same shapes and dtypes.
        """
        # Compose.set_random_seed gives every transform the same seed, and transforms that share a
        # seed draw the same first number: both mirrors would always fire together.
        seeds = rng.integers(0, 2**31, size=len(self._pipeline.transforms) + 1)
        self._pipeline.set_random_seed(int(seeds[-1]))
        for transform, seed in zip(self._pipeline.transforms, seeds, strict=False):
            transform.set_random_seed(int(seed))
        if pixels.dtype == np.uint16:
            # albumentations computes in uint8 or float32; 24 bits of mantissa carry 16 exactly.
            image = pixels.astype(np.float32) / np.float32(65535)
        else:
            image = np.asarray(pixels)
        result = self._pipeline(image=image, mask=mask)
        varied = result["image"].reshape(pixels.shape)
        if pixels.dtype == np.uint16:
            varied = np.rint(np.clip(varied, 0, 1) * np.float32(65535)).astype(np.uint16)
        return np.ascontiguousarray(varied), np.ascontiguousarray(
            result["mask"].reshape(mask.shape)
        )


def build_pipeline(spec: AugmentationSpec) -> Any:
    """Build the albumentations pipeline.

    Side effects:
        Sets NO_ALBUMENTATIONS_UPDATE: the library asks the package index for its newest version
        while it is imported, and factories are offline.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    # Imported here because it takes two to four seconds.
    import albumentations

    transforms = []
    if spec.flips:
        transforms += [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)]
    if spec.light:
        transforms += [
            albumentations.RandomBrightnessContrast(
                brightness_limit=0.12, contrast_limit=0.12, p=0.5
            ),
            albumentations.RandomGamma(gamma_limit=(85, 118), p=0.5),
        ]
    if spec.noise:
        transforms.append(
            # A defect in one colour channel is rare; noise in each is what sensors do.
            albumentations.GaussNoise(std_range=(0.002, 0.012), per_channel=True, p=0.5)
        )
    return albumentations.Compose(transforms)
