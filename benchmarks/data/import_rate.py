"""Frames into a data set through the running service, against unzip and cp of the same files.

The service receives, unpacks, decodes, hashes, flushes and records each frame; unzip and cp only
write. ``cp, sync`` also flushes, as the service does.
"""

import argparse
import shutil
import struct
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs

from benchmarks.data.page import PAGE
from benchmarks.data.rounds import measure_rounds, median_s, ratio
from benchmarks.data.running_service import running_service
from benchmarks.results_page import spread
from data.synthetic import draw_frame
from service.client import HairlineClient
from service.client.folder_upload import list_folder, upload_files

_POLL_S = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    PAGE.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the page; return the exit status."""
    return PAGE.record("import", arguments, measure)


def measure(quick: bool) -> dict[str, Any]:
    """Return the rates of one run."""
    frames, rounds = (3, 2) if quick else (24, 5)
    width, height = (320, 256) if quick else (2500, 2000)
    drawn = (draw_frame(seed, width_px=width, height_px=height) for seed in range(frames))
    pictures = [bytes(imagecodecs.png_encode(frame.pixels, level=1)) for frame in drawn]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with running_service(folder) as (client, _url, _api):
            seconds = measure_rounds(_arms(folder, client, pictures, rounds + 1), rounds=rounds)
    megabytes = sum(map(len, pictures)) / 1e6
    baselines = [name for name in ("unzip", "cp -r", "cp -r, sync") if name in seconds]
    rows = []
    for arm in seconds:
        times = [spread(ratio(seconds, arm, baseline)) for baseline in baselines]
        rate = f"{megabytes / median_s(seconds, arm):.0f} MB/s"
        rows.append([arm, f"{frames / median_s(seconds, arm):.1f}", rate, *times])
    return {
        "notes": [
            (
                f"{frames} PNG files of {width}x{height} px, 8 bit, {megabytes:.1f} MB; "
                f"{rounds} rounds; no round sends bytes that the service has seen. The archive's "
                "time runs until its import has ended."
            ),
        ],
        "columns": ["", "frames/s", "rate", *(f"time / {name}" for name in baselines)],
        "rows": rows,
    }


def _arms(
    folder: Path, client: HairlineClient, pictures: list[bytes], sets: int
) -> dict[str, Callable[[], object]]:
    """Return what takes turns, with its files ready for as many rounds as there are sets."""
    fresh = _Fresh(folder, pictures, sets)
    arms: dict[str, Callable[[], object]] = {
        "service, archive": lambda: _import_archive(client, fresh.take_archive()),
        "service, folder": lambda: _import_folder(client, fresh.take_folder()),
        "cp -r": lambda: _command("cp", "-r", fresh.folder, fresh.target()),
        "cp -r, sync": lambda: _copy_and_flush(fresh.folder, fresh.target()),
    }
    if shutil.which("unzip"):
        arms["unzip"] = lambda: _command("unzip", "-q", fresh.archive, "-d", fresh.target())
    return arms


class _Fresh:
    """Folders and archives of the same pictures that differ in a comment, made beforehand."""

    def __init__(self, folder: Path, pictures: list[bytes], sets: int) -> None:
        self._folder = folder
        self._made = 0
        self._pictures = pictures
        self._folders = [self._write_folder() for _ in range(sets)]
        self._archives = [self._write_archive() for _ in range(sets)]
        self.folder, self.archive = self._write_folder(), self._write_archive()

    def take_folder(self) -> Path:
        return self._folders.pop()

    def take_archive(self) -> Path:
        return self._archives.pop()

    def target(self) -> Path:
        self._made += 1
        return self._folder / f"target-{self._made}"

    def _write_folder(self) -> Path:
        self._made += 1
        folder = self._folder / f"set-{self._made}"
        folder.mkdir()
        for number, raw in enumerate(self._pictures):
            stamped = _with_comment(raw, f"{self._made}")
            (folder / f"part_{number:03}.png").write_bytes(stamped)
        return folder

    def _write_archive(self) -> Path:
        folder = self._write_folder()
        archive = folder.with_suffix(".zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            for path in sorted(folder.iterdir()):
                packed.write(path, path.name)
        shutil.rmtree(folder)
        return archive


def _with_comment(png: bytes, comment: str) -> bytes:
    """Return the picture with a text chunk before its end: the same pixels, other bytes."""
    body = b"tEXt" + b"Comment\0" + comment.encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:-12] + chunk + png[-12:]


def _import_archive(client: HairlineClient, archive: Path) -> None:
    dataset = client.create_dataset(archive.name).id
    queued = client.upload_archive(dataset, archive).queued
    found = client.wait_for_import(dataset, queued.id, poll_s=_POLL_S)
    if found.status != "succeeded":
        raise RuntimeError(f"the import {found.status}: {found.rejected or found.error}")


def _import_folder(client: HairlineClient, folder: Path) -> None:
    dataset = client.create_dataset(folder.name).id
    sent = upload_files(client, dataset, list_folder(folder))
    if sent.accepted != sent.files:
        raise RuntimeError(f"{sent.files - sent.accepted} files were not accepted: {sent.rejected}")


def _copy_and_flush(source: Path, target: Path) -> None:
    _command("cp", "-r", source, target)
    _command("sync", *sorted(target.iterdir()))


def _command(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)  # noqa: S603 - constants and our paths.
