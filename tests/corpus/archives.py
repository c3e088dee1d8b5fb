"""Broken archives, and archives with one broken member beside a good frame."""

import gzip
import io
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from backports import zstd

from tests.corpus.entries import CLASSES, MONO, BrokenArchive, index_mask, png

GOOD = png(MONO)
_PACK, _AGAIN, _SPLIT = "Pack the folder", "Pack or upload", "Split it"
_TARGET = "/etc/passwd"


def zipped(*files: tuple[str, bytes]) -> bytes:
    """Return a zip of the files."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore", UserWarning)  # A second file of one name is the point.
        for name, content in files:
            # A ZipInfo of its own has a fixed date: the same files are the same bytes every time.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def tarred(*files: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar of the good frame's kind; files of another kind link to a system file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if not content:
                info.type, info.linkname = kind, _TARGET
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _noise(count: int) -> bytes:
    """Return bytes that can't be packed, the same every time."""
    return np.random.default_rng(3).bytes(count)


_FRAME = ("good.png", GOOD)
_FILES = (_FRAME, ("more.bin", _noise(3000)))
_ZIP, _TAR = zipped(*_FILES), tarred(*_FILES)
_GZ, _ZST = gzip.compress(_TAR, mtime=0), zstd.compress(_TAR)


def _central(raw: bytes, name: bytes) -> int:
    """Return where the zip's directory describes a member."""
    return raw.index(name, raw.index(b"PK\x01\x02")) - 46


def _zip_patched(offset: int, form: str, *values: int) -> bytes:
    raw = bytearray(zipped(_FRAME, ("bad.png", GOOD * 3)))
    struct.pack_into(form, raw, _central(bytes(raw), b"bad.png") + offset, *values)
    return bytes(raw)


def _zip_wrong_crc() -> bytes:
    return _zip_patched(16, "<I", 0)


def _zip_link() -> bytes:
    return _zip_patched(38, "<I", 0o120777 << 16)


def _zip_device() -> bytes:
    return _zip_patched(38, "<I", 0o020666 << 16)


def _zip_of_a_large_member() -> bytes:
    noise = _noise(1_200_000)
    raw = bytearray(zipped(_FRAME, ("bad.png", GOOD), ("noise.bin", noise)))
    struct.pack_into("<I", raw, _central(bytes(raw), b"bad.png") + 24, 1_100_000_000)
    return bytes(raw)


def _zip_of_a_lying_ratio() -> bytes:
    return _zip_patched(24, "<I", 2_000_000_000)


def _bomb_of_zeros() -> bytes:
    """Return 300 MB of zeros in a few kilobytes."""
    info = tarfile.TarInfo("bomb.png")
    info.size = 300_000_000
    packer = zstd.ZstdCompressor()
    parts = [packer.compress(info.tobuf())]
    parts += [packer.compress(bytes(1_000_000)) for _ in range(301)]
    return b"".join([*parts, packer.flush()])


def _tar_of_200_gb() -> bytes:
    info = tarfile.TarInfo("bomb.png")
    info.size = 200_000_000_000
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


def _endless_padding() -> bytes:
    packer = zstd.ZstdCompressor()
    parts = [packer.compress(_TAR)] + [packer.compress(bytes(1_000_000)) for _ in range(20)]
    return b"".join([*parts, packer.flush()])


def _header_of_gigabytes() -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 8_000_000_000
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


def _const(raw: bytes) -> Callable[[], bytes]:
    return lambda: raw


def _whole(raw: bytes, code: str = "archive_damaged", hint: str = "again") -> BrokenArchive:
    return BrokenArchive(_const(raw), code, hint)


def _bomb(build: Callable[[], bytes], code: str = "archive_too_large") -> BrokenArchive:
    return BrokenArchive(build, code, _SPLIT if code == "archive_too_large" else "again")


def _member(
    build: Callable[[], bytes], member: str, code: str, hint: str, where: str = "whole file"
) -> BrokenArchive:
    return BrokenArchive(build, code, hint, member, where, kept=1)


def _unsafe(pack: Callable[..., bytes], name: str) -> BrokenArchive:
    build = _const(pack(_FRAME, (name, GOOD)))
    return _member(build, name, "unsafe_name", "Rename", "file name")


_TYPE, _LINE = "label_field_type", "Correct the "


def _boxes(lines: bytes, code: str, where: str, hint: str = _LINE) -> BrokenArchive:
    """Return a DeepPCB set whose boxes are broken."""
    member = "1/1_not/1.txt"
    build = _const(zipped(("1/1/1_test.png", GOOD), (member, lines)))
    return _member(build, member, code, hint, where)


def _special(kind: bytes) -> BrokenArchive:
    build = _const(tarred(_FRAME, ("bad.png", b""), kind=kind))
    return _member(build, "bad.png", "member_not_a_file", "files themselves")


def _class_masks(
    pit: Any,
    code: str,
    hint: str,
    where: str,
    *,
    member: str = "masks/pit/good.png",
    pack: Callable[..., bytes] = zipped,
) -> BrokenArchive:
    """Return a frame with a good mask of one class, and another mask."""
    files = [_FRAME, ("masks/scratch/good.png", png(index_mask(255))), ("masks/pit/good.png", pit)]
    return BrokenArchive(_const(pack(*files)), code, hint, member, where, 1, CLASSES)


BROKEN_ARCHIVES = {
    "class_masks_that_overlap": _class_masks(
        png(index_mask(1)), "mask_overlap", "do not overlap", "pixel (x=40, y=20)"
    ),
    "tar_of_class_masks_that_overlap": _class_masks(
        png(index_mask(1)), "mask_overlap", "do not overlap", "pixel (x=40, y=20)", pack=tarred
    ),
    "class_masks_of_two_sizes": _class_masks(
        png(index_mask(1)[1:]), "label_size_mismatch", "never rescaled", "whole file"
    ),
    "class_mask_of_index_values": _class_masks(
        png(index_mask(2)), "mask_value", "0 and 255", "pixel (x=40, y=20)"
    ),
    "class_mask_cut_off": _class_masks(
        png(index_mask(1))[:-20], "image_damaged", "again", f"byte {len(png(index_mask(1))) - 20}"
    ),
    "class_mask_beside_a_refused_one": _class_masks(
        png(index_mask(2)),
        "mask_part_refused",
        "Correct that one",
        "whole file",
        member="masks/scratch/good.png",
    ),
    "empty_body": _whole(b"", "archive_empty", "Send the archive"),
    "zip_of_nothing": _whole(zipped(), "archive_empty", _PACK),
    "tar_of_nothing": _whole(tarred(), "archive_empty", _PACK),
    "tar_gz_of_nothing": _whole(gzip.compress(tarred()), "archive_empty", _PACK),
    "tar_zst_of_nothing": _whole(zstd.compress(tarred()), "archive_empty", _PACK),
    "zip_of_litter": _whole(zipped(("__MACOSX/._a.png", b"x")), "archive_empty", _PACK),
    "text": _whole(b"this is no archive"),
    "picture_for_an_archive": _whole(GOOD),
    "rar": _whole(b"Rar!\x1a\x07\x01\0" + bytes(600)),
    "seven_zip": _whole(b"7z\xbc\xaf\x27\x1c" + bytes(600)),
    "gzip_of_no_tar": _whole(gzip.compress(b"text" * 500)),
    "zip_cut_in_its_directory": _whole(_ZIP[:-40]),
    "zip_cut_in_half": _whole(_ZIP[: len(_ZIP) // 2]),
    "zip_without_its_last_byte": _whole(_ZIP[:-1]),
    "tar_cut_in_a_header": _whole(_TAR[:300]),
    "tar_cut_in_a_member": _whole(_TAR[:2000]),
    "tar_with_a_garbled_header": _whole(_TAR[:512] + b"\xff" * 9000),
    "tar_gz_cut_in_half": _whole(_GZ[: len(_GZ) // 2]),
    "tar_gz_without_its_checksum": _whole(_GZ[:-8]),
    "tar_gz_of_a_wrong_crc": _whole(_GZ[:-8] + bytes(4) + _GZ[-4:]),
    "tar_zst_cut_in_half": _whole(_ZST[: len(_ZST) // 2]),
    "tar_zst_without_its_last_byte": _whole(_ZST[:-1]),
    "zip_bomb_by_ratio": _bomb(_zip_of_a_lying_ratio),
    "tar_zst_bomb_by_ratio": _bomb(_bomb_of_zeros),
    "tar_bomb_by_size": _bomb(_tar_of_200_gb),
    "tar_zst_bomb_of_padding": _bomb(_endless_padding, "archive_damaged"),
    "tar_header_of_gigabytes": _bomb(_header_of_gigabytes, "archive_damaged"),
    "zip_whose_members_overlap": _whole(_zip_patched(20, "<I", 10**8)),
    "zip_member_that_climbs": _unsafe(zipped, "../evil.png"),
    "zip_member_that_is_absolute": _unsafe(zipped, "/etc/evil.png"),
    "tar_member_that_climbs": _unsafe(tarred, "a/../../evil.png"),
    "tar_member_that_is_absolute": _unsafe(tarred, "/etc/evil.png"),
    "tar_symbolic_link": _special(tarfile.SYMTYPE),
    "tar_hard_link": _special(tarfile.LNKTYPE),
    "tar_fifo": _special(tarfile.FIFOTYPE),
    "tar_character_device": _special(tarfile.CHRTYPE),
    "zip_link": _member(_zip_link, "bad.png", "member_not_a_file", "files themselves"),
    "zip_device": _member(_zip_device, "bad.png", "member_not_a_file", "files themselves"),
    "zip_encrypted_member": _member(
        lambda: _zip_patched(8, "<H", 1), "bad.png", "member_encrypted", "without a password"
    ),
    "zip_duplicate_member": _member(
        _const(zipped(_FRAME, ("./good.png", GOOD * 2))), "good.png", "duplicate_member", "again"
    ),
    "tar_duplicate_member": _member(
        _const(tarred(_FRAME, ("./good.png", GOOD * 2))), "good.png", "duplicate_member", "again"
    ),
    "zip_member_of_a_wrong_crc": _member(_zip_wrong_crc, "bad.png", "member_damaged", _AGAIN),
    "zip_member_that_declares_too_little": _member(
        lambda: _zip_patched(24, "<I", 10), "bad.png", "member_damaged", _AGAIN
    ),
    "zip_member_that_declares_too_much": _member(
        lambda: _zip_patched(24, "<I", 10**6), "bad.png", "member_damaged", _AGAIN
    ),
    "zip_member_of_an_unknown_method": _member(
        lambda: _zip_patched(10, "<H", 77), "bad.png", "member_damaged", _AGAIN
    ),
    "zip_member_too_large": _member(
        _zip_of_a_large_member, "bad.png", "member_too_large", "Leave it out"
    ),
    "zip_in_a_zip": _member(
        _const(zipped(_FRAME, ("inner.zip", zipped(_FRAME)))),
        "inner.zip",
        "unsupported_file",
        "Upload",
        "file name",
    ),
    "deeppcb_of_a_half_line": _boxes(b"1 1 20 20 1\n3 4 9\n", _TYPE, "line 2"),
    "deeppcb_of_an_unknown_type": _boxes(b"1 1 20 20 7\n", "unknown_class", "line 1"),
    "deeppcb_box_outside": _boxes(b"1 1 200 20 1\n", "box_outside_frame", "line 1", "Move the box"),
    "deeppcb_box_of_no_width": _boxes(b"1 1 1 20 1\n", "box_empty", "line 1"),
    "tar_of_a_broken_frame": _member(
        _const(tarred(_FRAME, ("bad.png", GOOD[:-20]))),
        "bad.png",
        "image_damaged",
        "Copy it again",
        f"byte {len(GOOD) - 20}",
    ),
}
