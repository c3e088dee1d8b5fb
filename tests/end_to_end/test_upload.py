"""`hairline upload` takes a folder in as an annotation tool exported it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from tests.end_to_end.conftest import RunningService

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


def upload(service: RunningService, folder: Path, *options: str) -> "subprocess.CompletedProcess":  # type: ignore[type-arg]  # Generic in the stubs alone.
    return subprocess.run(
        [sys.executable, "-m", "service.cli", "upload", folder, "--url", service.url, *options],
        capture_output=True,
        check=False,
        text=True,
    )


def test_a_folder_of_yolo_files_is_uploaded_frozen_and_refused_where_it_is_wrong(
    start_service: Start, tmp_path: Path
) -> None:
    service, folder = start_service(), tmp_path / "export"
    write_yolo_set(folder)
    classes = ("--class", "spur", "--class", "short")
    done = upload(service, folder, "--dataset", "boards", *classes)
    assert done.returncode == 0, done.stderr
    assert f"{2 * FRAMES} of {2 * FRAMES} files are there" in done.stdout
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
    assert f"{2 * FRAMES} of {2 * FRAMES + 2} files are there" in again.stdout
    assert "images/part_99.png" in again.stderr
    assert "labels/part_99.txt" in again.stderr
