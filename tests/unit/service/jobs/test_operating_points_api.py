"""Other thresholds for the same weights: previewed, proven, and a model of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from models import ClassThreshold, OperatingPoint, load_bundle, write_bundle
from models.part_scores import AREAS_PX, PartScores, ScoredPart
from service.storage import Storage

AddModel = Callable[..., str]
CLASSES = ("pit", "scratch")
BY_RUN = ClassThreshold(threshold=0.8, basis="calibration")


def scored(generator: np.random.Generator, kind: str | None, index: int) -> ScoredPart:
    """A part with a defect of a class scores high for it; a good one scores low."""
    scores = {}
    for name in CLASSES:
        low, high = (300, 900) if kind == name else (0, 200)
        drawn = sorted(generator.integers(low, high, len(AREAS_PX)).tolist(), reverse=True)
        scores[name] = tuple(drawn)
    rejected = tuple(name for name in CLASSES if scores[name][0] >= 1000 * BY_RUN.threshold)
    return ScoredPart(
        part=f"{kind}-{index}",
        defective=kind is not None,
        shows=() if kind is None else (kind,),
        scores=scores,
        rejected_for=rejected,
    )


@pytest.fixture
def add_scored(add_model: AddModel, bundle: Path, tmp_path: Path) -> AddModel:
    """Add a model with the scores of so many defective calibration parts a class."""

    def add(name: str, pits: int = 500, scratches: int = 500) -> str:
        whole = load_bundle(bundle)
        generator = np.random.default_rng(0)
        calibration = [
            scored(generator, kind, index)
            for kind, count in (("pit", pits), ("scratch", scratches), (None, 60))
            for index in range(count)
        ]
        test = [scored(generator, kind, index) for kind in (*CLASSES, None) for index in range(20)]
        point = OperatingPoint(classes=dict.fromkeys(CLASSES, BY_RUN))
        kept = PartScores(run_point=point, calibration=tuple(calibration), test=tuple(test))
        info = whole.info.model_copy(update={"operating_point": point})
        write_bundle(tmp_path / name, info, whole.network.state_dict(), kept)
        return add_model(name, tmp_path / name)

    return add


def preview(client: TestClient, model: str, **query: Any) -> Any:
    return client.get(f"/models/{model}/operating-points/preview", params=query)


def solve(client: TestClient, model: str, **body: Any) -> Any:
    return client.post(f"/models/{model}/operating-points", json=body)


def test_a_preview_tells_what_a_bound_would_cost_and_changes_nothing(
    client: TestClient, add_scored: AddModel
) -> None:
    model = add_scored("a")
    told = preview(client, model, max_escape=0.05).json()

    assert told["unproven"] == {}
    for name in CLASSES:
        certificate = told["operating_point"]["classes"][name]["evidence"]["certificate"]
        assert certificate["is_proven"]
        assert certificate["bound"] <= 0.05
    # At the thresholds of the run a defect below 0.8 passes.
    assert told["now"]["escape"]["n"] == told["then"]["escape"]["n"] == 40
    assert told["now"]["escape"]["events"] > told["then"]["escape"]["events"]
    assert told["then"]["overkill"]["events"] == 0
    assert told["then"]["overkill"]["high"] > 0
    assert any("several" in note for note in told["notes"])
    assert len(client.get("/models").json()["items"]) == 1
    tighter = preview(client, model, max_escape=0.001).json()
    assert tighter["unproven"].keys() == {*CLASSES}


def test_other_thresholds_are_a_model_of_the_same_weights_that_the_gate_lets_through(
    client: TestClient, add_scored: AddModel, storage: Storage
) -> None:
    model = add_scored("a")
    constraint = {"escape": {"max_rate": 0.02}}
    body = {"model": model, "constraint": constraint}
    refused = client.put("/deployments/line-1", json=body)
    assert refused.json()["code"] == "constraint_not_met"
    before = (storage.bundle_dir(model) / "bundle.json").read_bytes()

    answer = solve(client, model, escape={"max_rate": 0.02}, by="M. Weber", reason="audit")

    assert answer.status_code == 201
    made = answer.json()
    assert made["id"] != model
    assert (made["parent"], made["job"]) == (model, "job_a")
    assert (made["origin"]["by"], made["origin"]["reason"]) == ("M. Weber", "audit")
    assert client.get(f"/models/{made['id']}").json() == made
    assert made["metrics"]["by_part"] == preview(client, model, max_escape=0.02).json()["then"]
    weights = [load_bundle(storage.bundle_dir(each)).info for each in (model, made["id"])]
    assert weights[0].weights_sha256 == weights[1].weights_sha256
    assert (storage.bundle_dir(model) / "bundle.json").read_bytes() == before
    served = client.put("/deployments/line-1", json={**body, "model": made["id"]})
    assert (served.status_code, served.json()["gate"]["outcome"]) == (201, "met")
    (entry, deployed) = client.get("/ledger/entries").json()["items"]
    assert (entry["kind"], entry["parent"], entry["model"]) == (
        "operating_point",
        model,
        made["id"],
    )
    assert entry["sequence"] == made["origin"]["ledger_sequence"]
    assert deployed["kind"] == "deployment"
    # What was made of it can be made again of that.
    assert solve(client, made["id"], escape={"max_rate": 0.05}).status_code == 201


def test_what_the_parts_cannot_prove_is_refused_with_how_many_are_missing(
    client: TestClient, add_scored: AddModel
) -> None:
    model = add_scored("a", scratches=20)

    refused = solve(client, model, escape={"max_rate": 0.01})

    assert (refused.status_code, refused.json()["code"]) == (409, "escape_not_provable")
    assert "'scratch' lacks 439 defective parts" in refused.json()["detail"]
    assert "'pit'" not in refused.json()["detail"]
    kept = solve(client, model, escape={"max_rate": 0.01}, keep_unproven=True).json()
    assert kept["origin"]["unproven"] == {"scratch": 439}
    classes = kept["operating_point"]["classes"]
    assert classes["pit"]["evidence"]["certificate"]["is_proven"]
    assert classes["scratch"]["threshold"] == BY_RUN.threshold
    eased = {"max_rate": 0.01, "per_class": {"scratch": 0.3}}
    assert solve(client, model, escape=eased).status_code == 201


def test_a_class_that_no_calibration_part_shows_lacks_all_of_them(
    client: TestClient, add_scored: AddModel
) -> None:
    told = preview(client, add_scored("a", scratches=0), max_escape=0.01).json()
    assert told["unproven"] == {"scratch": 459}


def test_a_model_whose_run_kept_no_scores_says_so(client: TestClient, add_model: AddModel) -> None:
    model = add_model("a")
    for answer in (
        preview(client, model, max_escape=0.01),
        solve(client, model, escape={"max_rate": 0.01}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "part_scores_missing")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"escape": {"max_rate": 0.5, "per_class": {"dent": 0.1}}}, "/escape/per_class"),
        ({"escape": {"max_rate": 0}}, "/escape/max_rate"),
        ({}, "/escape"),
    ],
)
def test_a_bound_that_cannot_be_meant_names_its_place(
    client: TestClient, add_scored: AddModel, body: dict[str, Any], where: str
) -> None:
    refused = solve(client, add_scored("a"), **body)
    assert (refused.status_code, refused.json()["where"]) == (422, where)


def test_scores_of_other_weights_prove_nothing(
    client: TestClient, add_scored: AddModel, storage: Storage
) -> None:
    model = add_scored("a")
    path = storage.bundle_dir(model) / "part_scores.json"
    kept = PartScores.model_validate_json(path.read_bytes())
    path.write_text(kept.model_copy(update={"weights_sha256": "0" * 64}).model_dump_json())
    answer = preview(client, model, max_escape=0.01)
    assert (answer.status_code, answer.json()["code"]) == (500, "bundle_damaged")
