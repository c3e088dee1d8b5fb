"""What a line serves is a decision: with a constraint, a gate, a history and a way back."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models import OperatingPoint, load_bundle, write_bundle
from models.certificate import upper_bound

ONE_PERCENT = {"escape": {"max_rate": 0.01, "confidence": 0.95}}
OVERRIDE = {"reason": "the line stands still", "by": "M. Weber"}
AddModel = Callable[..., str]


@pytest.fixture
def frame() -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96), dtype=np.uint8)
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded)


@pytest.fixture
def add_proven(add_model: AddModel, bundle: Path, tmp_path: Path) -> AddModel:
    """Add a model each of whose classes is proven by so many defective parts."""

    def add(name: str, parts: int = 1000) -> str:
        whole = load_bundle(bundle)
        told = {
            "is_proven": True,
            "confidence": 0.95,
            "bound": upper_bound(0, parts, 0.99),
            "allowed_escapes": 0,
            "candidates": 5,
            "defective_parts": parts,
        }
        point = OperatingPoint(
            classes={
                each: chosen.model_copy(update={"evidence": {"certificate": told}})
                for each, chosen in whole.info.operating_point.classes.items()
            }
        )
        info = whole.info.model_copy(update={"operating_point": point})
        write_bundle(tmp_path / name, info, whole.network.state_dict())
        return add_model(name, tmp_path / name)

    return add


def put(client: TestClient, model: str, **more: Any) -> Any:
    return client.put("/deployments/line-1", json={"model": model, **more})


def predict(client: TestClient, frame: bytes) -> Any:
    return client.post("/predict?deployment=line-1", files={"file": ("a.png", frame)}).json()


def history(client: TestClient) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/deployments/line-1/history").json()["items"]
    return items


def test_a_model_that_does_not_prove_the_constraint_is_refused_with_what_it_lacks(
    client: TestClient, add_model: AddModel, add_proven: AddModel
) -> None:
    proven, unproven = add_proven("a"), add_model("b")
    assert put(client, proven, constraint=ONE_PERCENT).status_code == 201

    refused = put(client, unproven)

    assert (refused.status_code, refused.json()["code"]) == (409, "constraint_not_met")
    problem = refused.json()
    assert problem["where"] == "/model"
    assert "459 more defective parts" in problem["hint"]
    assert [each["class_name"] for each in problem["gate"]["shortfalls"]] == ["pit", "scratch"]
    served = client.get("/deployments/line-1").json()
    assert (served["model"], served["gate"]["outcome"]) == (proven, "met")
    assert [event["kind"] for event in history(client)] == ["created"]


def test_a_new_deployment_is_not_made_by_a_model_that_is_refused(
    client: TestClient, add_model: AddModel
) -> None:
    assert put(client, add_model("a"), constraint=ONE_PERCENT).status_code == 409
    assert client.get("/deployments/line-1").status_code == 404


def test_a_refused_model_is_not_even_loaded(client: TestClient, add_model: AddModel) -> None:
    model = add_model("a")
    put(client, model, constraint=ONE_PERCENT)
    assert isinstance(client.app, FastAPI)
    assert model not in client.app.state.inference._warm


def test_an_override_is_logged_shown_and_said_in_every_answer(
    client: TestClient, add_model: AddModel, add_proven: AddModel, frame: bytes
) -> None:
    proven, unproven = add_proven("a"), add_model("b")
    put(client, proven, constraint=ONE_PERCENT)
    assert predict(client, frame)["warnings"] == []

    answer = put(client, unproven, override=OVERRIDE)

    assert answer.status_code == 200
    assert answer.json()["gate"]["override"] == OVERRIDE
    shown = client.get("/deployments/line-1").json()["warnings"]
    assert "override of M. Weber: the line stands still" in shown[0]
    assert predict(client, frame)["warnings"] == shown
    late = client.post(
        "/predict?deployment=line-1&deadline_ms=0.001", files={"file": ("a.png", frame)}
    ).json()
    assert shown[0] in late["warnings"]
    newest = history(client)[0]
    assert (newest["kind"], newest["by"]) == ("promoted", "M. Weber")
    assert newest["gate"]["outcome"] == "overridden"
    # A model that proves the constraint needs none, and nothing is left of it.
    assert put(client, proven).json()["warnings"] == []


def test_a_constraint_stays_until_it_is_changed_and_is_asked_of_what_is_served(
    client: TestClient, add_model: AddModel, add_proven: AddModel
) -> None:
    proven = add_proven("a", 500)
    put(client, proven, constraint=ONE_PERCENT)
    tighter = {"escape": {"max_rate": 0.001}}

    assert put(client, proven, constraint=tighter).status_code == 409
    assert client.get("/deployments/line-1").json()["constraint"]["escape"]["max_rate"] == 0.01

    taken_away = put(client, proven, constraint=None, reason="trial run")
    assert taken_away.json()["constraint"] is None
    assert taken_away.json()["gate"]["outcome"] == "no_constraint"
    newest = history(client)[0]
    assert (newest["kind"], newest["reason"]) == ("constraint_changed", "trial run")
    assert newest["details"]["constraint_before"]["escape"]["max_rate"] == 0.01
    assert put(client, add_model("b")).status_code == 200


def test_the_history_tells_who_changed_what_when_and_in_what_order_to_predictions(
    client: TestClient, add_model: AddModel, frame: bytes
) -> None:
    first, second = add_model("a"), add_model("b")
    put(client, first, by="A. Berg", reason="start")
    predict(client, frame)
    client.put("/deployments/line-1", json={"model": second}, headers={"X-Hairline-User": "B. Tal"})
    predict(client, frame)
    client.post("/deployments/line-1:rollback")

    events = history(client)
    assert [
        (event["kind"], event["by"], event["model_before"], event["model_after"])
        for event in events
    ] == [
        ("rolled_back", None, second, first),
        ("promoted", "B. Tal", first, second),
        ("created", "A. Berg", None, first),
    ]
    assert events[0]["at"] >= events[1]["at"] >= events[2]["at"]
    assert events[2]["reason"] == "start"
    entries = client.get("/ledger/entries").json()["items"]
    assert [(entry["kind"], entry["model"]) for entry in entries] == [
        ("deployment", first),
        ("prediction", first),
        ("deployment", second),
        ("prediction", second),
        ("deployment", first),
    ]
    assert [event["ledger_sequence"] for event in events] == [5, 3, 1]
    page = client.get("/deployments/line-1/history?limit=2").json()
    rest = client.get(f"/deployments/line-1/history?cursor={page['next_cursor']}").json()
    assert page["items"] + rest["items"] == events


def test_what_is_served_already_is_no_event(client: TestClient, add_model: AddModel) -> None:
    model = add_model("a")
    put(client, model)
    assert put(client, model).status_code == 200
    assert len(history(client)) == 1


def test_an_override_holds_as_long_as_model_and_constraint_stay(
    client: TestClient, add_model: AddModel
) -> None:
    model = add_model("a")
    put(client, model, constraint=ONE_PERCENT, override=OVERRIDE)
    again = put(client, model)
    assert (again.status_code, again.json()["gate"]["outcome"]) == (200, "overridden")
    assert len(history(client)) == 1
    assert put(client, model, constraint={"escape": {"max_rate": 0.5}}).status_code == 409


def test_rolling_back_twice_goes_two_models_back_and_never_to_one_given_up(
    client: TestClient, add_model: AddModel
) -> None:
    a, b, c = (add_model(name) for name in "abc")
    for model in (a, b, c, b, c):
        put(client, model)

    def roll_back() -> Any:
        return client.post("/deployments/line-1:rollback").json()

    assert (roll_back()["model"], roll_back()["model"]) == (b, a)
    assert roll_back()["code"] == "no_previous_model"
    # What is promoted again can be left again.
    put(client, c)
    assert roll_back()["model"] == a


def test_a_rollback_pressed_twice_in_haste_leaves_only_the_model_that_was_meant(
    client: TestClient, add_model: AddModel
) -> None:
    a, b, c = (add_model(name) for name in "abc")
    for model in (a, b, c):
        put(client, model)
    body = {"given_up": c, "by": "A. Berg", "reason": "false alarms"}
    assert client.post("/deployments/line-1:rollback", json=body).json()["model"] == b
    again = client.post("/deployments/line-1:rollback", json=body)
    assert (again.status_code, again.json()["code"]) == (409, "deployment_changed")
    assert client.get("/deployments/line-1").json()["model"] == b
    assert history(client)[0]["reason"] == "false alarms"


def test_the_gate_stands_before_a_rollback_too(
    client: TestClient, add_model: AddModel, add_proven: AddModel
) -> None:
    unproven, proven = add_model("a"), add_proven("b")
    put(client, unproven)
    put(client, proven, constraint=ONE_PERCENT)

    refused = client.post("/deployments/line-1:rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "constraint_not_met")
    assert client.get("/deployments/line-1").json()["model"] == proven
    forced = client.post("/deployments/line-1:rollback", json={"override": OVERRIDE})
    assert forced.json()["model"] == unproven


def test_a_rollback_takes_up_the_override_under_which_the_model_was_served(
    client: TestClient, add_model: AddModel, add_proven: AddModel
) -> None:
    unproven, proven = add_model("a"), add_proven("b")
    put(client, unproven, constraint=ONE_PERCENT, override=OVERRIDE)
    put(client, proven)

    back = client.post("/deployments/line-1:rollback").json()

    assert (back["model"], back["gate"]["outcome"]) == (unproven, "overridden")
    assert back["gate"]["override"] == OVERRIDE
    assert "M. Weber" in back["warnings"][0]


def test_a_disk_that_takes_no_entry_holds_up_no_rollback_but_is_told(
    client: TestClient, add_model: AddModel
) -> None:
    for name in "ab":
        put(client, add_model(name))
    assert isinstance(client.app, FastAPI)
    ledger = client.app.state.recorder._ledger
    real, ledger._file = ledger._file, Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - it stands in for a full disk.
    try:
        back = client.post("/deployments/line-1:rollback").json()
    finally:
        ledger._file.close()
        ledger._file = real
    assert back["model"] == "mdl_a"
    assert "could not be recorded in the ledger" in back["warnings"][0]
    assert history(client)[0]["ledger_sequence"] is None


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"constraint": {}}, "/constraint"),
        ({"constraint": {"escape": {"max_rate": 2}}}, "/constraint/escape/max_rate"),
        # A slip of the pen must not count parts for ever.
        ({"constraint": {"escape": {"max_rate": 1e-300}}}, "/constraint/escape/max_rate"),
        (
            {"constraint": {"overkill": {"max_rate": 0.1, "confidence": 1 - 1e-16}}},
            "/constraint/overkill/confidence",
        ),
        ({"override": {"reason": "", "by": "x"}}, "/override/reason"),
        (
            {"constraint": {"escape": {"max_rate": 0.5, "per_class": {"dent": 0.1}}}},
            "/constraint/escape/per_class",
        ),
        ({"by": " "}, "/by"),
    ],
)
def test_a_wish_that_cannot_be_meant_names_its_place(
    client: TestClient, add_model: AddModel, body: dict[str, Any], where: str
) -> None:
    refused = put(client, add_model("a"), **body)
    assert (refused.status_code, refused.json()["where"]) == (422, where)


def test_a_cursor_that_no_database_can_hold_is_no_cursor(
    client: TestClient, add_model: AddModel
) -> None:
    put(client, add_model("a"))
    cursor = base64.urlsafe_b64encode(json.dumps([2**70]).encode()).decode()
    refused = client.get(f"/deployments/line-1/history?cursor={cursor}")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_cursor")
    assert client.get(f"/deployments/line-1/frames/{2**70}/image").status_code == 422


def test_only_a_known_deployment_has_a_history(client: TestClient) -> None:
    assert client.get("/deployments/line-9/history").json()["code"] == "deployment_not_found"
