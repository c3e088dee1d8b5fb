"""The worst of a model as pictures: defects it misses and alarms that are none, worst first."""

import heapq
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from data.display import draw_outlines, to_display
from models import Pixels

Kind = Literal["miss", "false_alarm"]
Box = tuple[int, int, int, int]

PICTURES_A_KIND = 12
# A frame full of findings must not fill the gallery.
FINDINGS_A_FRAME = 3
SIDE_PX = 240
_LEAST_SIDE_PX = 160
CONTEXT_PX = 48
_GAP_PX = 4
_PAPER = 255
# Colours of `data.display.class_colour`: sky blue and orange, told apart by colour-blind people.
LABEL_COLOUR = 1
REPORTED_COLOUR = 0
# Of WebP; high enough for a line one pixel wide, at a tenth of the bytes of PNG on grained metal.
_QUALITY = 92


@dataclass(frozen=True)
class Finding:
    """One labelled or reported region that the model judged worst.

    Attributes:
        kind: ``miss`` or ``false_alarm``.
        frame: Its frame's name.
        class_name: Its class.
        box: x, y, width, height in the frame.
        area_px: Number of pixels.
        score: The highest probability in it.
        is_wrong: Whether the verdict is concerned: the defect was not found, or the region was
            reported.  Where fewer are wrong than there is room for, the nearest to it follow.
        labelled_as: Other classes that are labelled on its pixels.
    """

    kind: Kind
    frame: str
    class_name: str
    box: Box
    area_px: int
    score: float
    is_wrong: bool
    labelled_as: tuple[str, ...] = ()

    @property
    def badness(self) -> tuple[bool, float]:
        """Larger is worse."""
        return (self.is_wrong, -self.score if self.kind == "miss" else self.score)


@dataclass(frozen=True)
class Crop:
    """A window of native pixels around a finding.

    Attributes:
        box: x, y, width, height in the frame.
        is_cut: Whether the finding is larger than the window.
        picture: (H, 2 W + gap, 3) uint8, RGB: as it is, and with labels and reports outlined.
    """

    box: Box
    is_cut: bool
    picture: NDArray[np.uint8]


class Gallery:
    """Keeps the worst findings of each kind; its memory is that of their crops.

    Args:
        limit: Pictures of each kind.
    """

    def __init__(self, limit: int = PICTURES_A_KIND) -> None:
        self._limit = limit
        self._heaps: dict[Kind, list[tuple[tuple[bool, float], int, Finding, Crop]]] = {
            "miss": [],
            "false_alarm": [],
        }
        self._offered = 0

    def offer(self, finding: Finding, cut: Callable[[Finding], Crop]) -> None:
        """Keep a finding if it is among the worst; only then is its picture drawn."""
        heap = self._heaps[finding.kind]
        self._offered += 1
        if self._limit == 0 or (len(heap) == self._limit and finding.badness <= heap[0][0]):
            return
        # Of equals the first stays: a later one has a smaller second key.
        entry = (finding.badness, -self._offered, finding, cut(finding))
        if len(heap) == self._limit:
            heapq.heapreplace(heap, entry)
        else:
            heapq.heappush(heap, entry)

    def worst(self, kind: Kind) -> list[tuple[Finding, Crop]]:
        """Return what is kept of a kind, worst first."""
        ordered = sorted(self._heaps[kind], key=lambda entry: entry[:2], reverse=True)
        return [(finding, crop) for _, _, finding, crop in ordered]

    def write(self, directory: Path) -> list[dict[str, Any]]:
        """Write the pictures as WebP with ``index.json`` beside them, and return the index.

        Side effects: pictures of an earlier attempt in the directory are removed.
        """
        directory.mkdir(exist_ok=True)
        for old in directory.glob("*.webp"):
            old.unlink()
        index = []
        for kind in self._heaps:
            for place, (finding, crop) in enumerate(self.worst(kind), 1):
                name = f"{kind}-{place:02d}.webp"
                (directory / name).write_bytes(encode(crop.picture))
                window = {"crop": crop.box, "is_cut": crop.is_cut}
                index.append({**asdict(finding), **window, "picture": name})
        text = json.dumps(index, indent=2) + "\n"
        (directory / "index.json").write_text(text, encoding="utf-8")
        return index


def cut_crop(
    finding: Finding,
    pixels: Pixels,
    labelled: NDArray[np.bool_],
    reported: NDArray[np.bool_],
) -> Crop:
    """Cut the window around a finding and outline what is labelled and what is reported in it.

    Args:
        finding: Where to look.
        pixels: (H, W, C) of the whole frame.
        labelled: (H, W) of the finding's class.
        reported: (H, W) of the finding's class.
    """
    frame_height, frame_width = labelled.shape
    x, width = _window(finding.box[0], finding.box[2], frame_width)
    y, height = _window(finding.box[1], finding.box[3], frame_height)
    window = np.s_[y : y + height, x : x + width]
    levels = (int(pixels.min()), int(pixels.max())) if pixels.dtype == np.uint16 else None
    plain = to_display(pixels[window], levels)
    if plain.shape[2] == 1:
        plain = np.repeat(plain, 3, axis=2)
    marked = (
        (LABEL_COLOUR, labelled[window].astype(np.uint8)),
        (REPORTED_COLOUR, reported[window].astype(np.uint8)),
    )
    gap = np.full((height, _GAP_PX, 3), _PAPER, np.uint8)
    picture = np.concatenate([plain, gap, draw_outlines(plain, marked)], axis=1)
    is_cut = finding.box[2] > width or finding.box[3] > height
    return Crop((x, y, width, height), is_cut, picture)


def _window(start: int, length: int, limit: int) -> tuple[int, int]:
    """Return start and length of a window around a stretch, inside of 0 to ``limit``."""
    size = min(max(length + 2 * CONTEXT_PX, _LEAST_SIDE_PX), SIDE_PX, limit)
    first = start + length // 2 - size // 2
    return min(max(first, 0), limit - size), size


def encode(picture: NDArray[np.uint8]) -> bytes:
    """Return an RGB picture as WebP."""
    _, encoded = cv2.imencode(
        ".webp", np.ascontiguousarray(picture[:, :, ::-1]), [cv2.IMWRITE_WEBP_QUALITY, _QUALITY]
    )
    return bytes(encoded.tobytes())
