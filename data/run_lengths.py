"""COCO's run-length masks, from the file's own text to pixels.

The format is pycocotools' (`common/maskApi.c`), which is the tests' reference. It is not used here
because its error ("Invalid RLE mask representation") names neither the annotation nor the mistake.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.errors import LabelError
from data.json_document import Place
from data.limits import DEFAULT_LIMITS

_FIRST_CHARACTER = 48
_BITS = 5
_MORE = 0x20
_SIGN = 0x10
# 2**35 is far beyond any picture's pixels.
_MOST_CHARACTERS = 7


def read_run_lengths(segmentation: Place, *, width: int, height: int) -> NDArray[np.bool_]:
    """Return the pixels that a segmentation of ``size`` and ``counts`` marks.

    Args:
        segmentation: The object; ``counts`` is a list, or its compressed text.
        width: Of the frame, in pixels.
        height: Of the frame, in pixels.

    Returns:
        (H, W) bool.

    Raises:
        LabelError: With the JSON pointer: another size than the frame's, counts that do not fill it
            exactly, or no pixel marked.
    """
    _check_size(segmentation.field("size"), width, height)
    counts = segmentation.field("counts")
    compressed = isinstance(counts.value, str)
    runs = _decompress(counts) if compressed else _read_list(counts)
    if sum(runs) != width * height:
        raise _wrong(counts, f"The runs cover {sum(runs)} pixels, the frame has {width * height}.")
    marked = np.zeros(width * height, dtype=np.bool_)
    ends = np.cumsum(np.asarray([0, *runs], dtype=np.int64)).tolist()
    # Runs of background and of the object take turns, column by column.
    for begin, end in list(pairwise(ends))[1::2]:
        marked[begin:end] = True
    if not marked.any():
        raise counts.error(
            "mask_empty", "The mask marks no pixel.", "Draw the object, or delete the annotation."
        )
    return marked.reshape((height, width), order="F")


def _check_size(size: Place, width: int, height: int) -> None:
    if [place.size() for place in size.items()] != [height, width]:
        raise size.error(
            "label_size_mismatch",
            f"The mask is of height and width {str(size.value)[:60]}, its frame of "
            f"[{height}, {width}].",
            "Export the file again, with masks of their frames' size.",
        )
    if width * height > DEFAULT_LIMITS.max_pixels:
        raise size.error(
            "label_field_type",
            f"{width * height} pixels are more than the {DEFAULT_LIMITS.max_pixels} of a frame.",
            "Correct the frame's size.",
        )


def _read_list(counts: Place) -> list[int]:
    runs = []
    for place in counts.items():
        run = place.expect(int, "a number of pixels")
        if run < 0:
            raise _wrong(place, f"A run of {str(run)[:40]} pixels is none.")
        runs.append(run)
    return runs


def _decompress(counts: Place) -> list[int]:
    """Return the runs of a compressed text: from the third on, differences to the last but one."""
    runs: list[int] = []
    value = bits = 0
    for position, character in enumerate(counts.value):
        code = ord(character) - _FIRST_CHARACTER
        if not 0 <= code < 2 * _MORE or bits >= _MOST_CHARACTERS * _BITS:
            raise _wrong(counts, f"The character {position + 1} has no meaning there.")
        value |= (code & (_MORE - 1)) << bits
        bits += _BITS
        if code & _MORE:
            continue
        if code & _SIGN:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise _wrong(counts, f"The run {len(runs)} has {runs[-1]} pixels.")
        value = bits = 0
    if bits:
        raise _wrong(counts, "The text ends within a number.")
    return runs


def _wrong(place: Place, detail: str) -> LabelError:
    return place.error(
        "label_field_type", detail, "Export the file again with the annotation tool."
    )
