"""How large a picture may be before it is decoded."""

from dataclasses import dataclass

from data.errors import ImageError


@dataclass(frozen=True)
class PixelLimits:
    """Bounds on a picture's size, checked from its header before anything is allocated.

    Attributes:
        max_pixels: 100 MP is twenty 2500x2000 frames' worth, 0.6 GB as 16-bit RGB.
        max_side_px: Longest side; OpenCV's remapping functions index with 16 bits.
        min_side_px: Shortest side; the deepest encoder stage divides both sides by 32.
    """

    max_pixels: int = 100_000_000
    max_side_px: int = 32_768
    min_side_px: int = 32

    def check(self, width: int, height: int, *, name: str) -> None:
        """Raise ImageError (``image_too_large`` or ``image_too_small``) if the size is outside."""
        size = f"{width}x{height} px"
        if width > self.max_side_px or height > self.max_side_px:
            raise ImageError(
                "image_too_large",
                f"The picture is {size}; a side may have {self.max_side_px} px.",
                file=name,
                hint="Cut it into frames, or raise the limit if the machine has the memory.",
            )
        if width * height > self.max_pixels:
            raise ImageError(
                "image_too_large",
                f"The picture is {size}, {width * height} pixels; {self.max_pixels} are allowed.",
                file=name,
                hint="Cut it into frames, or raise the limit if the machine has the memory.",
            )
        if min(width, height) < self.min_side_px:
            raise ImageError(
                "image_too_small",
                f"The picture is {size}; each side needs at least {self.min_side_px} px.",
                file=name,
                hint="Upload the camera's full frame rather than a thumbnail or a cut-out.",
            )


DEFAULT_LIMITS = PixelLimits()

# A side that a label file may claim; beyond any camera, and far from what a database column holds.
MOST_LABELLED_PX = 1_000_000
