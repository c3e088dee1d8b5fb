"""``hairline predict FILES…`` and the client behind it, against a real service."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.client import HairlineClient, HairlineError


@pytest.fixture
def url(port: int, add_model: Callable[..., str]) -> str:
    address = f"http://127.0.0.1:{port}"
    httpx.put(f"{address}/deployments/default", json={"model": add_model("a")}, timeout=60)
    return address


@pytest.fixture
def frames(tmp_path: Path) -> list[str]:
    found = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 48), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        assert cv2.imwrite(str(path), pixels)
        found.append(str(path))
    return found


def predict(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["predict", "--url", url, *arguments])


def test_each_frame_has_a_row_and_one_that_fails_stops_no_other(
    url: str, frames: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    found = predict(url, frames[0], str(broken), frames[1])
    rows = found.stdout.splitlines()
    assert [row.split("\t")[0].strip() for row in rows] == ["NG", "NG"]
    assert [row.split("\t")[2] for row in rows] == frames
    assert "broken.png" in found.stderr
    assert "3 of 3 frames: 0 OK, 2 NG, 0 NOT_INSPECTED, 1 failed" in found.stderr
    assert found.exit_code == 1
    assert predict(url, *frames).exit_code == 2


def test_a_part_and_a_deadline_may_be_named(url: str, frames: list[str]) -> None:
    part = predict(url, "--part", "KTG-17", *frames)
    assert part.exit_code == 2
    assert "part KTG-17: NG" in part.stderr
    late = predict(url, "--deadline-ms", "0.001", "--json", frames[0])
    assert json.loads(late.stdout)["verdict"] == "NOT_INSPECTED"
    assert late.exit_code == 2


def test_a_full_queue_is_waited_for(url: str, tmp_path: Path) -> None:
    large = tmp_path / "large.bmp"
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    assert cv2.imwrite(str(large), pixels)
    with HairlineClient(url) as client, ThreadPoolExecutor(24) as threads:
        futures = [threads.submit(client.predict, large, patience_s=60) for _ in range(24)]
        assert {future.result().verdict for future in futures} == {"NG"}
    counted = httpx.get(f"{url}/metrics", timeout=60).text
    assert 'hairline_predictions_refused_total{code="client_busy"}' in counted


def test_what_waiting_does_not_mend_is_told_at_once(url: str, frames: list[str]) -> None:
    for address, deployment, code in (
        (url, "line-9", "deployment_not_found"),
        ("http://127.0.0.1:9", "default", "unreachable"),
    ):
        begin_s = time.monotonic()
        with HairlineClient(address) as client, pytest.raises(HairlineError) as refused:
            client.predict(Path(frames[0]), deployment=deployment, patience_s=60)
        assert (refused.value.code, refused.value.retry_after_s) == (code, None)
        assert time.monotonic() - begin_s < 30
