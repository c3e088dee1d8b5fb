"""`hairline upload` takes in what an annotation tool exported, and goes on after a kill."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from service.client import HairlineError
from tests.end_to_end.conftest import START_S, RunningService, kill_everything_over
from tests.oracles.bayer import mosaic_of

pytestmark = pytest.mark.slow

Start = Callable[[], RunningService]
# More than a request's worth, so that labels and frames do not all go together.
FRAMES = 60


def write_yolo_set(folder: Path) -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(FRAMES):
        pixels = random.integers(0, 256, (48, 64), dtype=np.uint8)
        (folder / f"images/part_{index:02}.png").write_bytes(imagecodecs.png_encode(pixels))
        # Every third part is good, and says so by an empty file.
        line = f"{index % 2} 0.5 0.5 0.25 0.5\n" if index % 3 else ""
        (folder / f"labels/part_{index:02}.txt").write_text(line)


def command(service: RunningService, folder: Path, *options: str) -> list[str]:
    program = [sys.executable, "-m", "service.cli", "upload", str(folder)]
    return [*program, "--url", service.url, *options]


def upload(
    service: RunningService, folder: Path, *options: str
) -> "subprocess.CompletedProcess[str]":
    program = command(service, folder, *options)
    return subprocess.run(program, capture_output=True, check=False, text=True)


def test_a_folder_of_yolo_files_is_uploaded_frozen_and_refused_where_it_is_wrong(
    start_service: Start, tmp_path: Path
) -> None:
    service, folder = start_service(), tmp_path / "export"
    write_yolo_set(folder)
    classes = ("--class", "spur", "--class", "short")
    done = upload(service, folder, "--dataset", "boards", *classes)
    assert done.returncode == 0, done.stderr
    assert f"{2 * FRAMES} of {2 * FRAMES} files are there, 0 of them were before" in done.stdout
    (dataset,) = service.client.datasets()
    assert dataset.classes == ["spur", "short"]
    version = service.client.freeze(dataset.id, split={"group_pattern": r"(part_\d+)"})
    assert version.statistics["frames"] == FRAMES
    assert any("labelled by boxes" in warning for warning in version.warnings)

    other = upload(service, folder, "--dataset", "boards", "--class", "short")
    assert other.returncode == 1
    assert "declares other classes (spur, short)" in other.stderr

    (folder / "images/part_99.png").write_bytes((folder / "images/part_00.png").read_bytes()[:-9])
    (folder / "labels/part_99.txt").write_text("0 0.5 0.5 0.25 0.5\n7 0.5 0.5 0.25 0.5\n")
    again = upload(service, folder, "--dataset", "boards")
    assert again.returncode == 1
    files = f"{2 * FRAMES} of {2 * FRAMES + 2} files are there, {2 * FRAMES} of them were before"
    assert files in again.stdout
    assert "images/part_99.png" in again.stderr
    assert "labels/part_99.txt" in again.stderr


def wait_for_frames(service: RunningService, count: int) -> None:
    """Wait until the only data set holds so many frames."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if any(dataset.counts["items"] >= count for dataset in service.client.datasets()):
                return
        except HairlineError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"there never were {count} frames")


def test_an_upload_that_is_killed_goes_on_and_sends_no_frame_twice(
    start_service: Start, tmp_path: Path
) -> None:
    folder, frames = tmp_path / "frames", 320
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(frames):
        # Noise packs badly, so that requests take a while.
        pixels = random.integers(0, 256, (400, 500), dtype=np.uint8)
        (folder / f"{index:03}.png").write_bytes(imagecodecs.png_encode(pixels))

    service = start_service()
    with subprocess.Popen(command(service, folder, "--dataset", "rings")) as client:
        wait_for_frames(service, 50)
        client.kill()

    with subprocess.Popen(
        command(service, folder, "--dataset", "rings"), stderr=subprocess.PIPE, text=True
    ) as second:
        wait_for_frames(service, 150)
        kill_everything_over(service.storage)
        assert second.stderr is not None
        message = second.stderr.read()
    assert second.returncode == 1
    assert "Run the same command again to go on." in message

    service = start_service()
    (dataset,) = service.client.datasets()
    before = dataset.counts["items"]
    assert 150 <= before < frames
    done = upload(service, folder, "--dataset", "rings")
    assert done.returncode == 0, done.stderr
    known = re.search(rf"{frames} of {frames} files are there, (\d+) of them", done.stdout)
    assert known is not None
    assert int(known[1]) == before
    assert service.client.dataset(dataset.id).counts["items"] == frames


def test_a_folder_of_raw_frames_is_uploaded_under_the_pattern_that_is_declared_once(
    start_service: Start, tmp_path: Path
) -> None:
    service, folder = start_service(), tmp_path / "camera"
    folder.mkdir()
    seen = np.random.default_rng(1).integers(0, 2**16, (48, 64, 3), dtype=np.uint16)
    (folder / "a.png").write_bytes(imagecodecs.png_encode(mosaic_of(seen, "BGGR")))
    (folder / "b.png").write_bytes(imagecodecs.png_encode(seen))

    unknown = upload(service, folder, "--dataset", "rings", "--bayer", "RGB")
    assert unknown.returncode == 1
    assert "choose of RGGB, BGGR, GRBG, GBRG" in unknown.stderr
    assert list(service.client.datasets()) == []

    done = upload(service, folder, "--dataset", "rings", "--bayer", "bggr")
    assert done.returncode == 1
    assert done.stderr.startswith("b.png (whole file): The picture is in colour")
    (dataset,) = service.client.datasets()
    assert dataset.bayer == "BGGR"
    (item,) = service.client.items(dataset.id)
    assert (item.name, item.channels, item.notes) == ("a.png", 3, ["Bayer BGGR demosaiced"])

    other = upload(service, folder, "--dataset", "rings", "--bayer", "RGGB")
    assert other.returncode == 1
    assert "declares BGGR" in other.stderr
