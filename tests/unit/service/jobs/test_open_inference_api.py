"""A client of the Open Inference Protocol gets the verdicts of ``/predict``."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

WIDTH, HEIGHT = 96, 64
PIXELS = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
URL = "/v2/models/default/infer"
PAGE = Path(__file__).parents[4] / "docs" / "predict.md"


def tensor(**changes: Any) -> dict[str, Any]:
    shape = [1, HEIGHT, WIDTH, 1]
    return {"name": "image", "shape": shape, "datatype": "UINT8", **changes}


def outputs(answer: Any) -> dict[str, list[Any]]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def binary(client: TestClient, sent: dict[str, Any], raw: bytes) -> Any:
    head = json.dumps(sent).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return client.post(URL, content=head + raw, headers=headers)


def test_numbers_and_bytes_get_the_verdict_of_predict(client: TestClient, served: str) -> None:
    layout = {"X-Width": str(WIDTH), "X-Height": str(HEIGHT), "X-Pixel-Format": "Mono8"}
    expected = client.post(
        "/predict",
        content=PIXELS.tobytes(),
        headers={"Content-Type": "application/octet-stream", **layout},
    ).json()
    flat = client.post(URL, json={"id": "7", "inputs": [tensor(data=PIXELS.ravel().tolist())]})
    nested = client.post(URL, json={"inputs": [tensor(data=PIXELS[None, :, :, None].tolist())]})
    parameters = {"binary_data_size": PIXELS.size}
    raw = binary(client, {"inputs": [tensor(parameters=parameters)]}, PIXELS.tobytes())

    for answer in (flat.json(), nested.json(), raw.json()):
        found = outputs(answer)
        assert found["verdict"] == [expected["verdict"]] == ["NG"]
        assert found["classes"] == [defect["class"] for defect in expected["defects"]]
        assert found["scores"] == [defect["score"] for defect in expected["defects"]]
        assert found["boxes"] == [side for d in expected["defects"] for side in d["box"]]
        assert answer["model_version"] == served
    assert flat.json()["id"] == "7"
    # The deployment is the first entry.
    assert client.get("/ledger").json()["sequence"] == 5


def test_health_and_metadata_tell_what_to_send(client: TestClient, served: str) -> None:
    assert client.get("/v2/health/live").status_code == 200
    # Nobody trains in this test, and a service without a worker is not ready.
    assert client.get("/v2/health/ready").status_code == 503
    model = client.get("/v2/models/default").json()
    assert model["versions"] == [served]
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 1]}]
    assert client.get(f"/v2/models/{served}/ready").json()["ready"] is True
    assert client.get("/v2/models/line-9").status_code == 404


def test_a_deadline_holds_and_the_verdict_is_never_left_out(
    client: TestClient, served: str
) -> None:
    sent = {
        "parameters": {"deadline_ms": 0.001},
        "inputs": [tensor(data=PIXELS.ravel().tolist())],
        "outputs": [{"name": "scores"}],
    }
    found = outputs(client.post(URL, json=sent).json())
    assert found == {"verdict": ["NOT_INSPECTED"], "scores": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [1, 2, 3]},
        {"data": [256] * PIXELS.size},
        {"data": [-1] * PIXELS.size},
        {"data": [0.5] * PIXELS.size},
        {"data": ["1"] * PIXELS.size},
        {"data": [[1], [2, 3]]},
        {"data": None},
        {"shape": [1, -64, -96, 1], "data": PIXELS.ravel().tolist()},
        {"shape": [2, 64, 48, 1], "data": PIXELS.ravel().tolist()},
        {"shape": [1, 10**9, 10**9, 1], "data": [1]},
        {"datatype": "FP32", "data": PIXELS.ravel().tolist()},
        {"name": "frame", "data": PIXELS.ravel().tolist()},
        {"parameters": {"binary_data_size": 4}},
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused_with_its_place(
    client: TestClient, served: str, changes: dict[str, Any]
) -> None:
    answer = client.post(URL, json={"inputs": [tensor(**changes)]})
    assert answer.status_code == 422
    assert answer.json()["where"].startswith("/inputs/0")
    assert answer.json()["hint"]


def test_the_pages_example_runs(client: TestClient, served: str) -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## The Open Inference Protocol")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[0]
    found: dict[str, Any] = {"client": client, "frame": PIXELS}
    exec(code, found)  # noqa: S102 - the page's own example.
    assert found["verdict"] == "NG"
