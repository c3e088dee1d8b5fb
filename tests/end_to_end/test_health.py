"""The health report of a running service, from the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data.synthetic import write_dataset
from tests.end_to_end.conftest import RunningService


def hairline(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_tells_what_is_wrong_and_fails_at_errors(
    start_service: Callable[[], RunningService], tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    write_dataset(folder, count=24, width_px=160, height_px=128, product_seed=1)
    service = start_service()
    sent = hairline(
        "upload", folder, "--dataset", "rings", "--url", service.url,
        "--class", "scratch", "--class", "pit", "--class", "stain",
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    (dataset,) = service.client.datasets()
    version = service.client.freeze(dataset.id, split={"group_pattern": r"part_(\d+)"}).id
    page = tmp_path / "health.html"

    healthy = hairline("health", version, "--url", service.url, "--html", page)

    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "WARNING few_defects" in healthy.stdout
    assert "0 errors" in healthy.stdout
    assert "24 frames were looked at" in healthy.stdout
    assert "Health of a data-set version" in page.read_text()

    first, *_ = service.client.items(dataset.id)
    (service.storage / "blobs" / first.sha256[:2] / first.sha256).unlink()
    broken = hairline("health", version, "--url", service.url)
    assert broken.returncode == 1
    assert f"    {first.name}: The file is gone from the storage folder." in broken.stdout
    assert "What to do:" in broken.stdout
    unknown = hairline("health", "ver_0", "--url", service.url)
    assert unknown.returncode == 1
    assert "there is no data-set version ver_0" in unknown.stderr
