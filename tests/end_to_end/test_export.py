"""`hairline export` writes a file that, imported again, is the same version."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from tests.end_to_end.conftest import RunningService

pytestmark = pytest.mark.slow


def export(
    service: RunningService, version: str, form: str, target: Path
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service.cli", "export", version, "--url", service.url]
    options = ["--format", form, "-o", str(target)]
    return subprocess.run([*command, *options], capture_output=True, check=False, text=True)


def test_an_export_is_whole_or_not_there_and_gives_the_version_back(
    start_service: Callable[[], RunningService], tmp_path: Path
) -> None:
    service, classes = start_service(), ["spur", "short"]
    hairline = service.client
    original, copy = (hairline.create_dataset(name, classes=classes).id for name in ("a", "b"))
    files = []
    for index in range(6):
        frame, label = tmp_path / f"{index}.png", tmp_path / f"{index}.txt"
        frame.write_bytes(imagecodecs.png_encode(np.full((48, 64), 40 + index, np.uint8)))
        label.write_text(f"{index % 2} 0.3333 0.51 0.1234567 0.3\n" if index % 3 else "")
        files += [(f"images/{index}.png", frame), (f"labels/{index}.txt", label)]
    hairline.upload(original, files)
    version = hairline.freeze(original)

    refused = export(service, version.id, "labelme", tmp_path / "refused.tar")
    assert refused.returncode == 1
    assert "Export the version as coco or voc or yolo" in refused.stderr
    assert list(tmp_path.glob("refused*")) == []

    target = tmp_path / "export.tar"
    done = export(service, version.id, "voc", target)
    assert done.returncode == 0, done.stderr
    assert f"{target.stat().st_size} bytes" in done.stdout
    queued = hairline.upload_archive(copy, target).queued
    assert hairline.wait_for_import(copy, queued.id).rejected == []
    assert hairline.freeze(copy).digest == version.digest

    # A picture that is no longer the one that was frozen breaks the download off.
    picture = next(path for path in (service.storage / "blobs").rglob("*") if path.is_file())
    picture.write_bytes(bytes(picture.stat().st_size))
    kept = target.read_bytes()
    broken = export(service, version.id, "coco", target)
    assert broken.returncode == 1
    assert "was not exported" in broken.stderr
    assert target.read_bytes() == kept
    assert list(tmp_path.glob("*.part")) == []
