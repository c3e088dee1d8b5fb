"""Each answer of ``/predict`` is in the ledger, and ``hairline ledger verify`` proves it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.api.app import create_app
from service.cli import app
from service.ledger.journal import ledger_files
from service.settings import Settings


@pytest.fixture
def frame() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96), dtype=np.uint8)
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded)


def predict(client: TestClient, frame: bytes, query: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = client.post(
        f"/predict{query}", files={"file": ("a.png", frame)}
    ).json()
    return answer


def verify(settings: Settings, *arguments: str) -> tuple[int, str]:
    command = ["ledger", "verify", "--storage", str(settings.storage_dir), *arguments]
    result = CliRunner().invoke(app, command)
    return result.exit_code, result.output


def test_each_answer_is_recorded_in_order_with_what_it_rests_on(
    client: TestClient, served: str, frame: bytes
) -> None:
    answers = [predict(client, frame), predict(client, frame, "?deadline_ms=0.001")]

    page = client.get("/ledger/entries").json()
    assert page["next_after"] is None
    assert page["items"].pop(0)["kind"] == "deployment"
    for answer, entry in zip(answers, page["items"], strict=True):
        assert entry["sequence"] == answer["ledger_sequence"]
        assert entry["request_id"] == answer["request_id"]
        assert entry["image"] == answer["image"]
        assert entry["verdict"] == answer["verdict"]
        assert entry["model"] == served
        assert len(entry["weights_sha256"]) == len(entry["operating_point_sha256"]) == 64
        assert entry["defect_count"] == len(answer["defects"])
    assert [entry["verdict"] for entry in page["items"]] == ["NG", "NOT_INSPECTED"]
    head = client.get("/ledger").json()
    assert head["hash"] == page["items"][-1]["hash"]
    assert head["sequence"] == 3


def test_entries_are_paged_by_their_sequence(client: TestClient, served: str, frame: bytes) -> None:
    for _ in range(3):
        predict(client, frame, "?deadline_ms=0.001")

    first = client.get("/ledger/entries?limit=2&after=1").json()
    second = client.get(f"/ledger/entries?limit=2&after={first['next_after']}").json()

    assert [entry["sequence"] for entry in first["items"]] == [2, 3]
    assert [entry["sequence"] for entry in second["items"]] == [4]
    assert client.get("/ledger/entries?after=-1").status_code == 422


def test_an_answer_that_the_disk_would_not_take_says_so(
    client: TestClient, served: str, frame: bytes
) -> None:
    predict(client, frame)
    recorder = client.app.state.recorder  # type: ignore[attr-defined]  # The client's type hides it.
    ledger = recorder._ledger
    real, ledger._file = ledger._file, Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - it stands in for a full disk.
    try:
        answer = predict(client, frame)
    finally:
        ledger._file.close()
        ledger._file = real

    assert answer["verdict"] == "NG"
    assert answer["ledger_sequence"] is None
    assert any("not recorded in the ledger" in warning for warning in answer["warnings"])


def test_a_second_service_on_the_storage_inspects_but_does_not_record(
    settings: Settings, client: TestClient, served: str, frame: bytes
) -> None:
    predict(client, frame)
    with TestClient(create_app(settings)) as second:
        answer = predict(second, frame)
    assert answer["verdict"] == "NG"
    assert answer["ledger_sequence"] is None
    assert any("another process writes" in warning for warning in answer["warnings"])


def test_verify_proves_an_untouched_ledger_and_names_a_changed_verdict(
    settings: Settings, client: TestClient, served: str, frame: bytes
) -> None:
    for _ in range(3):
        predict(client, frame)
    head = client.get("/ledger").json()["hash"]

    # Beside the running service, as an auditor would.
    code, said = verify(settings, "--head", head)
    assert (code, "4 entries, 1 to 4" in said) == (0, True)

    path = ledger_files(settings.ledger_dir)[0]
    path.write_bytes(path.read_bytes().replace(b'"verdict":"NG"', b'"verdict":"OK"', 1))
    code, said = verify(settings)
    assert code == 1
    assert f"{path.name} line 2: entry 2 was changed after it was written" in said
    assert client.get("/ledger/entries").json()["code"] == "ledger_broken"


def test_a_ledger_written_anew_lacks_the_hash_that_was_kept_elsewhere(
    settings: Settings, client: TestClient, served: str, frame: bytes
) -> None:
    predict(client, frame)

    code, said = verify(settings, "--head", "f" * 64)

    assert code == 1
    assert "written anew" in said


def test_an_empty_ledger_says_that_it_is_empty(settings: Settings, client: TestClient) -> None:
    assert verify(settings) == (0, f"{settings.ledger_dir} holds no entry.\n")
