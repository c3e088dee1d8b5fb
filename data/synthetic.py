"""Drawn frames of a machined surface with scratches, pits and stains.

They are what the product ships, demonstrates and tests itself with: no camera picture is
redistributed.  A frame is drawn so that no threshold on brightness finds its defects: they are
weaker than the light's own variation, and harmless marks, glints, dust and oil look as bright or
dark.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.flaws import CLASSES, add_defects
from data.surface import Plane, draw_surface, draw_surface_spec

FRAMES_PER_PART = 2

# Numbers of the random streams; a stream of its own keeps a part's finish the same whatever is
# drawn on it.
_SURFACE_STREAM, _FRAME_STREAM, _DEFECT_STREAM, _SENSOR_STREAM, _CHOICE_STREAM = range(5)
_PRODUCT_STREAM = 5


@dataclass(frozen=True)
class SyntheticFrame:
    """A drawn frame.

    Attributes:
        pixels: (H, W) uint8.
        mask: (H, W) uint8 index mask: 0 background, i + 1 stands for classes[i].
        classes: ("scratch", "pit", "stain").
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    classes: tuple[str, ...]


def draw_frame(
    seed: int,
    *,
    width_px: int = 2500,
    height_px: int = 2000,
    defects: bool = True,
    part_seed: int | None = None,
    product_seed: int | None = None,
) -> SyntheticFrame:
    """Draw one frame.

    Random numbers come from NumPy's PCG64, the same on every platform; another version of NumPy
    or OpenCV may round single pixels to the neighbouring grey level.

    Args:
        seed: What is drawn; not negative.
        width_px: At least 64; defects shrink with the frame only where they would not fit.
        height_px: At least 64.
        defects: Whether to draw one to four defects.
        part_seed: Finish and light of the part; frames with the same one show one part.  The
            frame's own seed if None.
        product_seed: Parts with the same one are of one product: finish and light differ little.
            None makes each part a product of its own.

    Raises:
        ValueError: A side is below 64 px.
    """
    if min(width_px, height_px) < 64:
        raise ValueError(f"a frame needs 64x64 px for its defects, not {width_px}x{height_px}")
    part = seed if part_seed is None else part_seed
    diagonal_px = float(np.hypot(width_px, height_px))
    product = None if product_seed is None else _stream(product_seed, _PRODUCT_STREAM)
    spec = draw_surface_spec(
        _stream(part, _SURFACE_STREAM), diagonal_px=diagonal_px, product=product
    )
    frame = draw_surface(spec, _stream(seed, _FRAME_STREAM), height_px=height_px, width_px=width_px)
    mask = np.zeros((height_px, width_px), np.uint8)
    if defects:
        add_defects(frame, mask, spec, _stream(seed, _DEFECT_STREAM))
    return SyntheticFrame(_expose(frame, _stream(seed, _SENSOR_STREAM)), mask, CLASSES)


def _stream(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream])))


def _expose(frame: Plane, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add shot and read noise, which the sensor's gain ties to the grey level, and quantize."""
    read_levels, shot_gain = np.float32(rng.uniform(0.8, 1.8)), np.float32(rng.uniform(0.01, 0.03))
    np.clip(frame, 0, 255, out=frame)
    noise = rng.standard_normal(frame.shape, dtype=np.float32)
    noise *= np.sqrt(read_levels**2 + shot_gain * frame)
    noise += frame
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def write_dataset(
    folder: Path,
    *,
    count: int,
    good_rate: float = 0.5,
    seed: int = 0,
    width_px: int = 2500,
    height_px: int = 2000,
    product_seed: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    r"""Draw a data set in the image-plus-mask layout: ``images/*.png`` and ``masks/*_mask.png``.

    Two frames show one part (``part_012_frame_1``), so splitting by ``part_(\d+)`` matters; parts
    are good or defective as a whole.

    Args:
        folder: Made if it is missing; files of the same names are replaced.
        count: Frames.
        good_rate: Share of the parts that are good.
        seed: What is drawn; equal arguments write equal pictures.
        width_px: Frames' width, as in `draw_frame`.
        height_px: Frames' height.
        product_seed: As for `draw_frame`: sets with the same one show parts of one product.
        progress: Called with (frames written, frames) after each frame.

    Returns:
        The pictures' names relative to ``folder``, in the order written.

    Raises:
        ValueError: ``count`` is below 1 or ``good_rate`` is no share.
    """
    if count < 1 or not 0 <= good_rate <= 1:
        raise ValueError(f"count={count} and good_rate={good_rate} describe no data set")
    good_parts = _choose_good_parts(-(-count // FRAMES_PER_PART), good_rate, seed)
    names = []
    for index in range(count):
        part, position = divmod(index, FRAMES_PER_PART)
        # Frames and parts draw from disjoint seeds below the data set's own.
        frame = draw_frame(
            _derived(seed, 1, index),
            width_px=width_px,
            height_px=height_px,
            defects=part not in good_parts,
            part_seed=_derived(seed, 0, part),
            product_seed=product_seed,
        )
        names.append(_write_pair(folder, f"part_{part + 1:03d}_frame_{position + 1}", frame))
        if progress is not None:
            progress(index + 1, count)
    return tuple(names)


def _choose_good_parts(parts: int, good_rate: float, seed: int) -> set[int]:
    shuffled = _stream(seed, _CHOICE_STREAM).permutation(parts)
    return set(shuffled[: round(parts * good_rate)].tolist())


def _derived(seed: int, purpose: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)[0])


def _write_pair(folder: Path, stem: str, frame: SyntheticFrame) -> str:
    """Write picture and mask and return the picture's name."""
    name = f"images/{stem}.png"
    _write_png(folder / name, frame.pixels)
    _write_png(folder / "masks" / f"{stem}_mask.png", frame.mask)
    return name


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    import imagecodecs

    path.parent.mkdir(parents=True, exist_ok=True)
    # Level 1: on noisy metal the higher levels save 3 % and take longer.
    path.write_bytes(imagecodecs.png_encode(pixels, level=1))
