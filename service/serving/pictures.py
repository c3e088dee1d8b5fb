"""What a model saw, as PNG files: mask, frame with outlines, heat map, probabilities."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from data.display import class_colour, to_display
from models import BundleInfo, Inspection, Pixels

Picture = Literal["mask", "overlay", "heatmap", "probabilities"]

# Measured on a mask of 2500x2000: level 1 takes a third of the default's time for a few percent.
_PNG_LEVEL = 1
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def drawable(info: BundleInfo) -> tuple[Picture, ...]:
    """Return the pictures that there are of a model's answers: a detector knows boxes alone."""
    return ("overlay",) if info.task == "detection" else get_args(Picture)


def draw(
    pictures: Sequence[Picture], pixels: Pixels, info: BundleInfo, inspection: Inspection
) -> dict[str, bytes]:
    """Return the pictures asked for as PNG files at the frame's own size.

    Args:
        pictures: Which, of `drawable`.
        pixels: The frame, (H, W) or (H, W, 3) RGB, uint8 or uint16.
        info: The model's description.
        inspection: What the model said.
    """
    drawings: dict[str, Any] = {}
    for picture in pictures:
        if picture == "overlay":
            drawings[picture] = overlay(pixels, info.classes, inspection)
            continue
        probabilities = inspection.probabilities
        assert probabilities is not None  # `drawable` has said so.
        if picture == "probabilities":
            for name, plane in zip(info.classes, probabilities, strict=True):
                drawings[f"{picture}/{name}"] = probability_map(plane)
        elif picture == "mask":
            drawings[picture] = class_mask(info, probabilities)
        else:
            drawings[picture] = heat_map(probabilities)
    return {name: _png(image) for name, image in drawings.items()}


def class_mask(info: BundleInfo, probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an index mask (H, W): 0 is background, i + 1 is class i where it is the strongest.

    Only pixels above their class's threshold count; minimum areas are not applied.
    """
    thresholds = np.array(
        [info.operating_point.classes[name].threshold for name in info.classes], np.float32
    )
    above = probabilities >= thresholds[:, None, None]
    strongest = np.where(above, probabilities, -1.0).argmax(axis=0)
    return np.where(above.any(axis=0), strongest + 1, 0).astype(np.uint8)


def run_lengths(
    info: BundleInfo, probabilities: NDArray[np.float32]
) -> dict[str, tuple[tuple[int, int], str]]:
    """Return each class's pixels of `class_mask`: height and width, and COCO's compressed counts.

    Columns come first, as in COCO's format; ``pycocotools.mask.decode`` reads them.
    """
    from pycocotools import mask as coco

    mask = class_mask(info, probabilities)
    size = (mask.shape[0], mask.shape[1])
    found = {}
    for number, name in enumerate(info.classes, start=1):
        encoded: Any = coco.encode(np.asfortranarray((mask == number).astype(np.uint8)))
        found[name] = (size, encoded["counts"].decode("ascii"))
    return found


def heat_map(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the strongest class's probability as colours (H, W, 3), dark to bright."""
    strength = (probabilities.max(axis=0) * 255).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(strength, cv2.COLORMAP_INFERNO), np.uint8)


def probability_map(probabilities: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return one class's probabilities (H, W) in 16 bits, 65535 for 1."""
    return np.rint(probabilities * 65_535).astype(np.uint16)


def overlay(pixels: Pixels, classes: Sequence[str], inspection: Inspection) -> NDArray[np.uint8]:
    """Return the frame in 8 bits, blue first, with each defect outlined, named and scored.

    A detector's defects have no outline, and their boxes are drawn.
    """
    canvas = np.ascontiguousarray(to_display(pixels)[:, :, ::-1])
    # A frame is looked at whole: lines and letters grow with it, so that they survive the zoom.
    side_px = max(canvas.shape[:2])
    thickness_px = max(1, round(side_px / 1000))
    letter_scale = max(0.4, side_px / 2500)
    for defect in inspection.defects:
        colour = class_colour(classes.index(defect.class_name))[::-1]
        outline = np.asarray(defect.polygon or _corners(defect.box), np.int32).reshape(-1, 1, 2)
        cv2.polylines(canvas, [outline], isClosed=True, color=colour, thickness=thickness_px)
        text = f"{defect.class_name} {defect.score:.2f}"
        (text_width, text_height), _ = cv2.getTextSize(text, _FONT, letter_scale, thickness_px)
        x, y = defect.box[:2]
        corner = (
            max(min(x, canvas.shape[1] - text_width), 0),
            max(y - 4 * thickness_px, text_height),
        )
        cv2.putText(canvas, text, corner, _FONT, letter_scale, colour, thickness_px)
    return canvas


def _corners(box: tuple[int, int, int, int]) -> tuple[tuple[int, int], ...]:
    x, y, width, height = box
    right, bottom = x + width - 1, y + height - 1
    return ((x, y), (right, y), (right, bottom), (x, bottom))


def _png(image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    done, encoded = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    assert done
    return bytes(encoded)
