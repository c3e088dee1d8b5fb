import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from data import ArchiveError, ArchiveLimits, DataError, open_archive

FILES = {"images/a.png": b"first" * 50, "images/b.png": b"second" * 50, "masks/ü.png": b"third"}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def tar_writer(mode: str) -> Callable[[Path, dict[str, bytes]], None]:
    def write(path: Path, files: dict[str, bytes]) -> None:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # mode is a str.
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return write


def write_tar_zst(path: Path, files: dict[str, bytes]) -> None:
    tar_writer("w")(path, files)
    path.write_bytes(zstd.compress(path.read_bytes()))


WRITERS = {
    "zip": write_zip,
    "tar": tar_writer("w"),
    "tar.gz": tar_writer("w:gz"),
    "tar.zst": write_tar_zst,
}


def read(path: Path, limits: ArchiveLimits | None = None) -> dict[str, bytes | str]:
    """Return each member's bytes, or the code of what is wrong with it."""
    found: dict[str, bytes | str] = {}
    for member in open_archive(path, limits or ArchiveLimits()):
        try:
            with member.open() as stream:
                found[member.name] = stream.read()
        except DataError as error:
            found[member.name] = error.code
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_members_come_in_order_with_their_bytes(kind: str, tmp_path: Path) -> None:
    # The content decides; the worker's spool file has no telling suffix.
    path = tmp_path / "upload.part"
    WRITERS[kind](path, FILES)
    assert list(read(path).items()) == list(FILES.items())
    assert [member.size for member in open_archive(path)] == [250, 300, 5]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_name_that_climbs_out_spoils_only_itself(kind: str, tmp_path: Path) -> None:
    files = {"../evil.png": b"x", "/etc/evil.png": b"x", "good.png": b"ok"}
    WRITERS[kind](tmp_path / "a", files)
    found = read(tmp_path / "a")
    assert found.pop("good.png") == b"ok"
    assert set(found.values()) == {"unsafe_name"}


def test_links_and_devices_in_a_tar_are_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (
            ("sym.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("null.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("good.png")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    found = read(tmp_path / "a.tar")
    assert found.pop("good.png") == b"ok"
    assert set(found.values()) == {"member_not_a_file"}
    assert len(found) == 4


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("good.png", "ok")
    assert read(tmp_path / "a.zip") == {"link.png": "member_not_a_file", "good.png": b"ok"}


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.png": b"x"})
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    assert read(tmp_path / "a.zip") == {"a.png": "member_encrypted"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", WRITERS)
def test_the_second_file_of_a_name_is_refused(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / "a", {"x.png": b"1", "./x.png": b"2"})
    problems = [member.problem for member in open_archive(tmp_path / "a")]
    assert problems[0] is None
    assert problems[1] is not None
    assert problems[1].code == "duplicate_member"


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "limits",
    [
        ArchiveLimits(max_members=2),
        ArchiveLimits(max_total_bytes=400),
        ArchiveLimits(max_ratio=0.01, ratio_floor_bytes=10),
    ],
)
def test_an_archive_beyond_the_limits_is_refused(
    kind: str, limits: ArchiveLimits, tmp_path: Path
) -> None:
    WRITERS[kind](tmp_path / "a", FILES)
    with pytest.raises(ArchiveError) as caught:
        read(tmp_path / "a", limits)
    assert caught.value.code == "archive_too_large"


def test_a_member_that_is_too_large_spoils_only_itself(tmp_path: Path) -> None:
    write_zip(tmp_path / "a", FILES)
    found = read(tmp_path / "a", ArchiveLimits(max_member_bytes=260))
    assert found["images/b.png"] == "member_too_large"
    assert found["images/a.png"] == FILES["images/a.png"]


def test_a_zip_whose_member_declares_too_little_gives_no_more_than_that(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.png": b"\0" * 1_000_000})
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    struct.pack_into("<I", raw, raw.index(b"PK\x01\x02") + 24, 10)
    (tmp_path / "a.zip").write_bytes(raw)
    assert read(tmp_path / "a.zip") == {"a.png": "member_damaged"}


def test_members_that_share_their_packed_bytes_are_a_bomb(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"a.png": b"\0" * 1000, "b.png": b"\0" * 1000})
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    entry = raw.index(b"PK\x01\x02")
    struct.pack_into("<I", raw, entry + 20, len(raw))
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(ArchiveError, match="overlap"):
        read(tmp_path / "a.zip")


def test_a_tar_header_that_declares_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = 8_000_000_000
    good = tarfile.TarInfo("a.png")
    raw = good.tobuf(tarfile.GNU_FORMAT) + info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(raw + b"\0" * 100_000))
    with pytest.raises(ArchiveError, match="extended header"):
        read(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("kind", WRITERS)
def test_an_archive_without_a_file_is_called_empty(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / "a", {})
    with pytest.raises(ArchiveError) as caught:
        read(tmp_path / "a")
    assert caught.value.code == "archive_empty"


@pytest.mark.parametrize(
    "raw",
    [b"", b"text", b"\x1f\x8b\x08\0garbage", b"PK\x03\x04 garbage", b"\x28\xb5\x2f\xfdgarbage"],
)
def test_what_is_no_archive_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(ArchiveError) as caught:
        read(tmp_path / "a.zip")
    assert (caught.value.code, caught.value.file) == ("archive_damaged", "a.zip")


@pytest.mark.parametrize("kind", WRITERS)
@given(share=st.floats(0, 0.97))
@settings(max_examples=30, deadline=None)
def test_a_part_of_an_archive_never_passes_for_the_whole(
    kind: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("archive") / "a"
    # Noise, so that gzip has something left to cut off.
    noise = bytes((i * i * 7919 + i) % 251 for i in range(4000))
    WRITERS[kind](path, {**FILES, "noise": noise, "last": noise})
    raw = path.read_bytes()
    # A tar file ends in padding that carries nothing.
    useful = raw.rstrip(b"\0") if kind == "tar" else raw
    path.write_bytes(raw[: int(len(useful) * share)])
    try:
        found = read(path)
    except ArchiveError:
        return
    assert "member_damaged" in found.values()
