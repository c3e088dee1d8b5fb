"""Models swapped under eight clients: no answer is lost, mixed or wrong, and the ledger has all."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.serve.load_plan import QUICK
from benchmarks.serve.loaded_service import LoadedService
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
from service.database.engine import open_engine, session_factory
from service.database.tables import Dataset, Job, Model, Version
from service.settings import Settings
from service.storage import Storage
from tests.end_to_end.conftest import RunningService

pytestmark = pytest.mark.slow

NETWORK = ModelSpec(encoder="mobilenet_v3_small", encoder_depth=3, decoder_channels=(16, 8, 8))
# What an untrained network says lies so near to one value that its answers would hang on rounding.
CONTRAST = 40.0


def write_untrained(storage: Storage, model_id: str, seed: int) -> None:
    """A network of its own opinion, whatever the frame shows."""
    info = BundleInfo(
        classes=("pit", "stain"),
        model=NETWORK,
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=NETWORK.stride_px
        ),
        operating_point=OperatingPoint(
            classes=dict.fromkeys(("pit", "stain"), ClassThreshold(threshold=0.5, min_area_px=30))
        ),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(seed)
    weights = build_network(info).state_dict()
    weights["segmentation_head.0.weight"] *= CONTRAST
    write_bundle(storage.bundle_dir(model_id), info, weights)


def add_models(service: RunningService, model_ids: tuple[str, ...]) -> None:
    """Put models into the storage of a running service, as its worker would after a job."""
    settings = Settings(storage_dir=service.storage)
    engine = open_engine(settings)
    with session_factory(engine).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation", classes=["pit"]))
        session.flush()
        version = {"digest": "0" * 64, "classes": ["pit"], "split": {}, "statistics": {}}
        session.add(Version(id="ver_1", dataset_id="ds_1", **version))
        session.flush()
        for seed, model_id in enumerate(model_ids):
            job_id = model_id.replace("mdl", "job")
            session.add(Job(id=job_id, version_id="ver_1", status="succeeded", spec={}))
            session.flush()
            session.add(Model(id=model_id, job_id=job_id, version_id="ver_1", report={}))
            write_untrained(Storage(settings.storage_dir), model_id, seed)
    engine.dispose()


def test_models_swapped_under_load_give_no_lost_mixed_or_wrong_answer(
    start_service: Callable[[], RunningService],
) -> None:
    service = start_service()
    models = ("mdl_1", "mdl_2", "mdl_3")
    add_models(service, models)
    loaded = LoadedService(service.client, service.url, service.child("api"), service.storage)
    outcome = loaded.run(
        replace(QUICK, seconds=20.0, swap_every_s=2.0), dict(zip(models, models, strict=True))
    )
    assert outcome.violations() == [], outcome.examples
    assert outcome.switches == 9
    assert outcome.rolled_back is not None
    assert outcome.counts["right"] > 50
    # Otherwise an answer of the wrong model would not have been noticed.
    assert outcome.telling > 0.9 * outcome.counts["right"]
