"""``hairline deploy``, ``deployments`` and ``rollback``, and the client's calls beneath them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from service.cli import app
from service.client import HairlineClient, HairlineError

AddModel = Callable[..., str]


@pytest.fixture
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def models(url: str, engine: Engine, add_model: AddModel) -> tuple[str, str]:
    return add_model("a"), add_model("b")


@pytest.fixture
def run(url: str) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*arguments, "--url", url])
        return result.exit_code, result.output

    return run


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 96), dtype=np.uint8)
    path = tmp_path / "frame.png"
    assert cv2.imwrite(str(path), pixels)
    return path


def test_a_person_deploys_is_refused_overrides_looks_and_rolls_back(
    run: Callable[..., tuple[int, str]], models: tuple[str, str]
) -> None:
    first, second = models
    code, said = run("deploy", first, "--name", "line-1", "--by", "A. Berg")
    assert (code, "gate: no_constraint" in said) == (0, True)

    code, said = run("deploy", second, "--name", "line-1", "--max-escape", "0.01")
    assert code == 1
    assert "459 more defective parts" in said
    override = ("--override-reason", "the line stands still", "--by", "M. Weber")
    code, said = run("deploy", second, "--name", "line-1", "--max-escape", "0.01", *override)
    assert code == 0
    assert "warning: deployment 'line-1' serves a model that does not prove" in said

    code, said = run("deployments")
    assert (code, f"line-1: {second}, before it {first}" in said) == (0, True)
    code, said = run("rollback", "--name", "line-1", "--reason", "false alarms")
    assert code == 1, "the model before proves no more"
    code, said = run("rollback", "--name", "line-1", *override)
    assert (code, f"line-1: {first}" in said) == (0, True)
    code, said = run("deployments", "line-1")
    newest, promoted, created = said.splitlines()
    assert "rolled_back" in newest
    assert f"{first} -> {second}, gate: overridden  M. Weber: the line stands still" in promoted
    assert "created" in created
    assert "A. Berg" in created
    code, said = run("deploy", first, "--name", "line-1", "--no-constraint")
    assert "gate: no_constraint" in said


def test_wishes_that_contradict_each_other_are_refused_before_anything_is_sent() -> None:
    arguments = ["deploy", "mdl_a", "--no-constraint", "--max-escape", "0.1"]
    result = CliRunner().invoke(app, [*arguments, "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "contradicts" in result.output


def test_the_client_keeps_frames_and_takes_them_into_a_data_set(
    url: str, models: tuple[str, str], frame: Path, tmp_path: Path
) -> None:
    with HairlineClient(url) as client:
        client.deploy("line-1", models[0])
        client.keep_frames("line-1", ng=True)
        assert client.predict(frame, deployment="line-1").verdict == "NG"
        kept: list[Any] = []
        while not kept:
            kept = list(client.kept_frames("line-1", "ng"))
        client.download_kept_frame(kept[0], tmp_path / "kept.png")
        assert (tmp_path / "kept.png").read_bytes() == frame.read_bytes()
        assert client.keeping("line-1").frames == 1
        dataset = client.create_dataset("line")
        assert client.take_kept_frames(dataset.id, "line-1", cause="ng").counts == {"accepted": 1}
        assert client.keep_no_frames("line-1").keep is None


def test_the_client_tells_why_other_thresholds_and_shadows_are_refused(
    url: str, models: tuple[str, str]
) -> None:
    with HairlineClient(url) as client:
        client.deploy("line-1", models[0])
        for call in (
            lambda: client.preview_operating_point(models[0], 0.01),
            lambda: client.make_operating_point(models[0], {"max_rate": 0.01}),
        ):
            with pytest.raises(HairlineError) as refused:
                call()
            assert refused.value.code == "part_scores_missing"
        client.begin_shadow("line-1", models[1], sample_rate=0.5)
        assert client.shadow("line-1").sample_rate == 0.5
        assert list(client.disagreements("line-1")) == []
        assert client.end_shadow("line-1", by="B. Müller", reason="seen enough").shadow is None
        newest = next(client.deployment_history("line-1"))
        assert (newest.by, newest.reason) == ("B. Müller", "seen enough")
        assert [event.kind for event in client.deployment_history("line-1")] == [
            "shadow_off",
            "shadow_on",
            "created",
        ]
