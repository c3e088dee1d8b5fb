"""A line that is swapped while it runs: no request is lost, and none is answered by two models."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from models import (
    ClassThreshold,
    FrozenModel,
    Inspection,
    OperatingPoint,
    build_network,
    load_bundle,
    write_bundle,
)
from service.storage import Storage

AddModel = Callable[..., str]
WIDTH, HEIGHT = 96, 64
SENDERS = 4
SWAPS = 24


@dataclass(frozen=True)
class Direct:
    """What a model says of each frame when it is asked without the service."""

    threshold: float
    inspections: list[Inspection]


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(8)
    return [generator.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8) for _ in range(3)]


def steady_threshold(probabilities: NDArray[np.float32]) -> float:
    """A threshold that no pixel comes near: batches round otherwise than single frames."""
    values = np.sort(probabilities.ravel())
    inner = values[len(values) // 10 : -len(values) // 10]
    gap = int(np.argmax(np.diff(inner)))
    assert inner[gap + 1] - inner[gap] > 1e-4
    return float((inner[gap] + inner[gap + 1]) / 2)


@pytest.fixture
def models(
    add_model: AddModel,
    bundle: Path,
    tmp_path: Path,
    storage: Storage,
    frames: list[NDArray[np.uint8]],
) -> dict[str, Direct]:
    """Three models of other weights and other thresholds, and what they say."""
    info = load_bundle(bundle).info
    made = {}
    for seed, name in enumerate("abc", start=1):
        torch.manual_seed(seed)
        weights = build_network(info).state_dict()
        write_bundle(tmp_path / f"draft-{name}", info, weights)
        draft = FrozenModel(load_bundle(tmp_path / f"draft-{name}"), "cpu")
        seen = np.stack([draft.probabilities(pixels) for pixels in frames])
        classes = {
            each: ClassThreshold(threshold=steady_threshold(seen[:, index]))
            for index, each in enumerate(info.classes)
        }
        point = OperatingPoint(classes=classes)
        write_bundle(tmp_path / name, info.model_copy(update={"operating_point": point}), weights)
        model_id = add_model(name, tmp_path / name)
        runtime = FrozenModel(load_bundle(storage.bundle_dir(model_id)), "cpu")
        made[model_id] = Direct(
            classes["pit"].threshold, [runtime.inspect(pixels) for pixels in frames]
        )
    return made


def assert_said_by(answer: dict[str, Any], frame: int, models: dict[str, Direct]) -> None:
    """All of an answer is what the one model says that it names."""
    direct = models[answer["model"]["id"]]
    point = answer["model"]["operating_point"]["classes"]
    assert point["pit"]["threshold"] == direct.threshold
    expected = direct.inspections[frame]
    assert answer["verdict"] == expected.verdict
    found = [(each["class"], tuple(each["box"]), each["area_px"]) for each in answer["defects"]]
    assert sorted(found) == sorted(
        (each.class_name, each.box, each.area_px) for each in expected.defects
    )


def test_what_is_to_be_done_once_models_have_loaded_their_libraries_is_done_at_the_first(
    client: TestClient, models: dict[str, Direct]
) -> None:
    settled: list[int] = []
    inference = client.app.state.inference  # type: ignore[attr-defined]  # An application's.
    inference.on_first_load = lambda: settled.append(len(inference.queue))
    for model_id in models:
        inference.warm(model_id)
    assert settled == [0]


def test_swaps_and_rollbacks_under_load_lose_and_mix_no_answer(
    client: TestClient, models: dict[str, Direct], frames: list[NDArray[np.uint8]]
) -> None:
    said = {name: direct.inspections[0].defects for name, direct in models.items()}
    assert len({str(defects) for defects in said.values()}) == 3, "models must be told apart"
    a, b, c = models
    url = "/deployments/line-1"
    assert client.put(url, json={"model": a}).status_code == 201
    bodies = [bytes(cv2.imencode(".png", pixels)[1]) for pixels in frames]
    is_over = Event()

    def send(sender: int) -> list[tuple[int, Any]]:
        answers: list[tuple[int, Any]] = []
        while not is_over.is_set():
            frame = (len(answers) + sender) % len(bodies)
            parts = {"file": ("a.png", bodies[frame])}
            answers.append((frame, client.post("/predict?deployment=line-1", files=parts)))
        return answers

    with ThreadPoolExecutor(SENDERS) as threads:
        sending = [threads.submit(send, sender) for sender in range(SENDERS)]
        try:
            for swap in range(SWAPS):
                step = swap % 4
                if step == 3:
                    assert client.post(f"{url}:rollback").status_code == 200
                else:
                    assert client.put(url, json={"model": (b, c, a)[step]}).status_code == 200
        finally:
            is_over.set()
        answers = [answer for each in sending for answer in each.result()]

    assert {answer.status_code for _, answer in answers} == {200}
    for frame, answer in answers:
        assert_said_by(answer.json(), frame, models)
    assert {answer.json()["model"]["id"] for _, answer in answers} == {*models}
    # Each prediction stands in the ledger after the entry that began to serve its model.
    served_before: set[str] = set()
    entries, after = [], 0
    while page := client.get(f"/ledger/entries?after={after}&limit=1000").json()["items"]:
        entries += page
        after = page[-1]["sequence"]
    for entry in entries:
        if entry["kind"] == "deployment":
            served_before.add(entry["model"])
        else:
            assert entry["model"] in served_before
    assert sum(entry["kind"] == "prediction" for entry in entries) == len(answers)
