"""A job starts from weights that are named, are there and fit; anything else is a 422."""

import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from typer.testing import CliRunner

from service.cli import app
from service.database.engine import session_factory
from service.database.tables import Job, Model
from service.jobs.spec import JobSpec, run_config
from service.jobs.states import JobStatus
from service.settings import Settings
from service.storage import Storage

MODEL_ID = "mdl_1"


@pytest.fixture
def earlier_model(engine: Engine, storage: Storage, version_id: str, bundle: Path) -> str:
    shutil.copytree(bundle, storage.bundle_dir(MODEL_ID))
    with session_factory(engine).begin() as session:
        session.add(Job(id="job_1", version_id=version_id, status=JobStatus.SUCCEEDED, spec={}))
        session.flush()
        session.add(Model(id=MODEL_ID, job_id="job_1", version_id=version_id, report={}))
    return MODEL_ID


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


def imported(settings: Settings, checkpoint: Path, name: str = "resnet18-imagenet") -> str:
    command = ["weights", "import", str(checkpoint), "--name", name]
    result = CliRunner().invoke(app, [*command, "--storage", str(settings.storage_dir)])
    assert result.exit_code == 0, result.output
    return str(result.output)


def test_an_imported_checkpoint_is_listed_with_what_it_is_for(
    client: TestClient, settings: Settings, checkpoint: Path
) -> None:
    assert client.get("/weights").json() == []
    said = imported(settings, checkpoint)
    (file,) = client.get("/weights").json()
    assert file["name"] == "resnet18-imagenet.safetensors"
    assert file["source"] == checkpoint.name
    # A ResNet-34 has these tensors and more.
    assert file["encoders"] == ["resnet18"]
    assert file["sha256"] in said
    assert file["error"] is None


def test_a_job_names_a_file_and_its_run_gets_the_path(
    client: TestClient, settings: Settings, version_id: str, checkpoint: Path
) -> None:
    imported(settings, checkpoint)
    wish = {"version": version_id, "weights": {"file": "resnet18-imagenet.safetensors"}}
    job = client.post("/jobs", json=wish)
    assert job.status_code == 201
    root = settings.storage_dir.resolve()
    config = run_config(
        JobSpec.model_validate(job.json()["spec"]), manifest=root / "m", root=root, device="cpu"
    )
    assert Path(config["weights"]["file"]).is_file()


def test_a_job_starts_from_an_earlier_model_of_the_same_encoder(
    client: TestClient, version_id: str, earlier_model: str, storage: Storage
) -> None:
    wish = {"version": version_id, "weights": {"model": earlier_model}}
    other = client.post("/jobs", json=wish).json()
    assert other["code"] == "weights_of_another_encoder"
    assert '"encoder_depth": 3' in other["hint"]

    fitting = wish | {"model": {"encoder": "resnet18", "encoder_depth": 3}}
    job = client.post("/jobs", json=fitting)
    assert job.status_code == 201
    spec = JobSpec.model_validate(job.json()["spec"])
    config = run_config(spec, manifest=storage.root / "m", root=storage.root, device="cpu")
    assert Path(config["weights"]["bundle"]) == storage.bundle_dir(earlier_model)


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"file": "../../etc/passwd"}, None),
        ({"file": "/etc/passwd.safetensors"}, None),
        ({"file": "..safetensors"}, None),
        ({"file": "away.safetensors"}, "unknown_weights"),
        ({"file": "torn.safetensors"}, "weights_unreadable"),
        ({"model": "mdl_nowhere"}, "unknown_model"),
        ({"model": "../mdl_1"}, None),
        ({"file": "away.safetensors", "model": "mdl_1"}, None),
        ({}, None),
    ],
)
def test_weights_that_are_no_weights_of_ours_are_refused(
    client: TestClient, settings: Settings, version_id: str, wish: dict[str, str], code: str | None
) -> None:
    settings.resolved_weights_dir.mkdir()
    (settings.resolved_weights_dir / "torn.safetensors").write_bytes(b"\x00" * 20)
    response = client.post("/jobs", json={"version": version_id, "weights": wish})
    assert response.status_code == 422
    problem = response.json()
    if code is not None:
        assert problem["code"] == code
        assert problem["hint"]
    assert client.get("/jobs").json()["items"] == []


def test_a_file_that_cannot_be_read_is_listed_as_such(
    client: TestClient, settings: Settings
) -> None:
    settings.resolved_weights_dir.mkdir()
    (settings.resolved_weights_dir / "torn.safetensors").write_bytes(b"\xff" * 20)
    (file,) = client.get("/weights").json()
    assert "no safetensors" in file["error"]


class _Stranger:
    """What a whole pickled model is to the importer: code."""


def test_the_importer_runs_no_code_and_names_the_remedy(settings: Settings, tmp_path: Path) -> None:
    pickled = tmp_path / "model.pth"
    torch.save({"model": _Stranger()}, pickled)
    other = tmp_path / "other.pth"
    torch.save({"backbone.weight": torch.zeros(1)}, other)
    for source, text in ((pickled, "state dict"), (other, "docs/models.md")):
        command = ["weights", "import", str(source), "--name", "x"]
        result = CliRunner().invoke(app, [*command, "--storage", str(settings.storage_dir)])
        assert result.exit_code == 1
        assert source.name in result.output
        assert text in result.output
    assert not settings.resolved_weights_dir.exists()


def test_a_name_that_is_a_path_is_refused(settings: Settings, checkpoint: Path) -> None:
    command = ["weights", "import", str(checkpoint), "--name", "../up"]
    result = CliRunner().invoke(app, [*command, "--storage", str(settings.storage_dir)])
    assert result.exit_code == 1
    assert "is no name" in result.output
