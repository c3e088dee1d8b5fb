"""The one thing that is read from EXIF: which way is up."""

import struct


def exif_orientation(block: bytes) -> int:
    """Return tag 274 of an EXIF block, 1 (upright) where it is absent or unreadable.

    EXIF 2.32, section 4.6.4: readers take a missing orientation as 1.
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", block, start + 2 + 12 * entry)
            if tag == 274 and kind == 3:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
