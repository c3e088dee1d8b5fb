"""What a file looks like that is no picture, for the error that says so."""

import re

_KNOWN = (
    (re.compile(rb"GIF8[79]a"), "a GIF picture"),
    (re.compile(rb"....ftyp(heic|heix|mif1|avif)", re.DOTALL), "a HEIC or AVIF picture"),
    (re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array"),
    (re.compile(rb"\s*(<!DOCTYPE|<html)", re.IGNORECASE), "a web page"),
    (re.compile(rb"\s*(<\?xml|<svg)", re.IGNORECASE), "an XML or SVG file"),
    (
        re.compile(rb"version https://git-lfs"),
        "a Git LFS pointer instead of the file it stands for",
    ),
    (re.compile(rb"\s*[\[{]"), "JSON text"),
)


def describe_content(raw: bytes) -> str:
    """Return in a few words what the content of a file that is not empty looks like."""
    head = raw[:512]
    for pattern, description in _KNOWN:
        if pattern.match(head):
            return description
    if not head.strip(b"\0"):
        return "zeros"
    try:
        # The cut at 512 bytes may fall inside a character.
        text = head.decode("utf-8", errors="strict" if len(raw) <= len(head) else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    if text and all(character.isprintable() or character in "\r\n\t" for character in text):
        return "text"
    return f"unknown (it starts with {head[:8].hex(' ')})"
