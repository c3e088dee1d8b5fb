"""Parts of several frames: one request, one verdict, and an OK needs every frame."""

from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from service.api.answers import part_verdict

VERDICTS: Any = st.lists(st.sampled_from(["OK", "NG", "NOT_INSPECTED"]))


def files(count: int) -> list[tuple[str, tuple[str, bytes]]]:
    generator = np.random.default_rng(3)
    found = []
    for number in range(count):
        pixels = generator.integers(0, 256, (64, 96), dtype=np.uint8)
        done, encoded = cv2.imencode(".png", pixels)
        assert done
        found.append(("file", (f"camera-{number}.png", bytes(encoded))))
    return found


def test_a_part_has_one_verdict_and_each_frame_its_own(client: TestClient, served: str) -> None:
    answer = client.post("/predict/part?part_id=KTG-17", files=files(3)).json()
    assert answer["verdict"] == "NG"
    assert [image["image"]["name"] for image in answer["images"]] == [
        "camera-0.png",
        "camera-1.png",
        "camera-2.png",
    ]
    alone = client.post("/predict", files=files(1)).json()
    for together, single in zip(answer["images"][0]["defects"], alone["defects"], strict=True):
        # Frames that go together differ from each alone by rounding, as `inspect_together` states.
        assert together.pop("score") == pytest.approx(single.pop("score"), abs=1e-5)
        assert together == single


def test_the_ledger_names_the_part_and_the_entries_of_its_frames(
    client: TestClient, served: str
) -> None:
    answer = client.post("/predict/part?part_id=KTG-17", files=files(2)).json()
    # The first entry tells of the deployment.
    *frames, part = client.get("/ledger/entries?after=1").json()["items"]
    assert [entry["kind"] for entry in frames] == ["prediction", "prediction"]
    assert {entry["part_id"] for entry in (*frames, part)} == {"KTG-17"}
    assert part["sequence"] == answer["ledger_sequence"]
    assert part["images"] == [entry["sequence"] for entry in frames]
    assert part["verdict"] == answer["verdict"]
    one = client.post("/predict?part_id=KTG-18", files=files(1)).json()
    assert one["part_id"] == "KTG-18"
    assert client.get("/ledger/entries?after=4").json()["items"][0]["part_id"] == "KTG-18"


def test_a_part_past_its_deadline_is_not_inspected(client: TestClient, served: str) -> None:
    answer = client.post("/predict/part?part_id=KTG-17&deadline_ms=0.001", files=files(2)).json()
    assert answer["verdict"] == "NOT_INSPECTED"
    assert all(image["verdict"] == "NOT_INSPECTED" for image in answer["images"])
    part = client.get("/ledger/entries").json()["items"][-1]
    assert (part["kind"], part["verdict"]) == ("part", "NOT_INSPECTED")


@given(VERDICTS)
def test_a_part_is_ok_only_if_every_frame_is(verdicts: list[Any]) -> None:
    verdict = part_verdict(verdicts)
    assert (verdict == "OK") == (bool(verdicts) and {*verdicts} == {"OK"})
    assert (verdict == "NG") == ("NG" in verdicts)


@pytest.mark.parametrize(
    ("query", "options", "code"),
    [
        ("", {"files": files(1)}, "invalid_request"),
        ("?part_id=", {"files": files(1)}, "invalid_request"),
        ("?part_id=a", {"data": {"file": "no file"}}, "unsupported_media_type"),
        ("?part_id=a", {"files": [("picture", ("a.png", b"x"))]}, "missing_file"),
        ("?part_id=a", {"files": files(9)}, "bad_request"),
        ("?part_id=a", {"files": [*files(1), ("file", ("b.png", b"x"))]}, None),
    ],
)
def test_what_is_no_part_is_refused_whole(
    client: TestClient, served: str, query: str, options: Any, code: str | None
) -> None:
    response = client.post(f"/predict/part{query}", **options)
    assert 400 <= response.status_code < 500
    assert code is None or response.json()["code"] == code
    # There is but the entry of the deployment.
    assert client.get("/ledger").json()["sequence"] == 1


def test_metrics_count_verdicts_refusals_and_where_time_went(
    client: TestClient, served: str
) -> None:
    client.post("/predict", files=files(1))
    client.post("/predict/part?part_id=a&deadline_ms=0.001", files=files(2))
    scraped = client.get("/metrics")
    assert scraped.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = scraped.text.splitlines()
    counted = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"
    }
    name = "hairline_predictions_total"
    assert counted[f'{name}{{deployment="default",verdict="NG"}}'] == 1
    late = counted.get(f'{name}{{deployment="default",verdict="NOT_INSPECTED"}}', 0)
    assert counted['hairline_parts_total{deployment="default",verdict="NOT_INSPECTED"}'] == 1
    for step, count in (("model", 1), ("queue", 1), ("postprocess", 1), ("total", 1 + late)):
        assert counted[f'hairline_prediction_seconds_count{{step="{step}"}}'] == count
    assert counted["hairline_frames_waiting"] == 0
    assert counted["hairline_ledger_failures_total"] == 0
    assert counted["process_resident_memory_bytes"] > 0
