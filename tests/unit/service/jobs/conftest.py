"""A frozen version, a bundle that a run may leave, and workers whose program is a stand-in."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from models import (
    BundleInfo,
    ClassThreshold,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
    write_bundle,
)
from service.database.engine import session_factory
from service.database.tables import Dataset, Job, Model, Version
from service.settings import Settings
from service.storage import Storage
from service.worker.worker import Worker

VERSION_ID = "ver_1"
UNTRAINED = ModelSpec(encoder="resnet18", encoder_depth=3, decoder_channels=(16, 8, 8))
STAND_IN = Path(__file__).parent / "stand_in_training.py"


@pytest.fixture
def version_id(engine: Engine) -> str:
    with session_factory(engine).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation", classes=["pit"]))
        session.flush()
        session.add(
            Version(
                id=VERSION_ID,
                dataset_id="ds_1",
                digest="0" * 64,
                classes=["pit"],
                split={},
                statistics={},
            )
        )
    return VERSION_ID


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of mono frames as a run would leave it."""
    mono = Preprocessing(
        in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=UNTRAINED.stride_px
    )
    return _write_untrained(tmp_path_factory.mktemp("trained") / "bundle", mono)


@pytest.fixture(scope="session")
def bayer_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network of 16-bit raw frames under GBRG filters."""
    raw = Preprocessing(
        in_channels=3,
        bit_depth=16,
        mean=(30_000.0,) * 3,
        std=(9_000.0,) * 3,
        stride_px=UNTRAINED.stride_px,
        bayer="GBRG",
    )
    return _write_untrained(tmp_path_factory.mktemp("trained") / "bundle", raw)


def _write_untrained(path: Path, preprocessing: Preprocessing) -> Path:
    info = BundleInfo(
        classes=("pit", "scratch"),
        model=UNTRAINED,
        norm=NormSpec(kind="bn"),
        preprocessing=preprocessing,
        operating_point=OperatingPoint(
            # An untrained network says about one half everywhere.
            classes={"pit": ClassThreshold(threshold=0.01), "scratch": ClassThreshold()}
        ),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    write_bundle(path, info, build_network(info).state_dict())
    return path


@pytest.fixture
def new_worker(
    settings: Settings, engine: Engine, storage: Storage, bundle: Path
) -> Iterator[Callable[..., Worker]]:
    """Make workers whose training program is the stand-in, doing what its plan says."""

    workers = []

    def make(*plan: str) -> Worker:
        command = [sys.executable, str(STAND_IN), str(bundle), ",".join(plan)]
        workers.append(Worker(settings, engine, storage, command))
        return workers[-1]

    yield make
    for run in [run for worker in workers for run in worker._runs.values()]:
        run.kill()
        while run.look():
            time.sleep(0.01)


AddModel = Callable[..., str]


@pytest.fixture
def add_model(engine: Engine, storage: Storage, version_id: str, bundle: Path) -> AddModel:
    def add(name: str, source: Path = bundle) -> str:
        with session_factory(engine).begin() as session:
            session.add(Job(id=f"job_{name}", version_id=version_id, status="succeeded", spec={}))
            session.flush()
            report = {"metrics": {"dice": 0.5}, "operating_point": {"classes": {}}}
            session.add(
                Model(id=f"mdl_{name}", job_id=f"job_{name}", version_id=version_id, report=report)
            )
        shutil.copytree(source, storage.bundle_dir(f"mdl_{name}"))
        return f"mdl_{name}"

    return add


@pytest.fixture
def served(client: TestClient, add_model: AddModel) -> str:
    model_id = add_model("a")
    assert client.put("/deployments/default", json={"model": model_id}).status_code == 201
    return model_id
