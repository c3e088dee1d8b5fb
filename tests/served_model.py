"""A storage whose models were never trained: enough of one to be asked for verdicts."""

from pathlib import Path

import torch

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

UNTRAINED = ModelSpec(encoder="resnet18", encoder_depth=3, decoder_channels=(16, 8, 8))


def add_untrained_model(storage_dir: Path, name: str, *, threshold: float) -> str:
    """Put a model of mono frames into a service's storage and return its id.

    An untrained network says about one half everywhere: a threshold near 1 makes every frame OK,
    one near 0 makes it NG.
    """
    info = BundleInfo(
        classes=("pit",),
        model=UNTRAINED,
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=UNTRAINED.stride_px
        ),
        operating_point=OperatingPoint(classes={"pit": ClassThreshold(threshold=threshold)}),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    weights = build_network(info).state_dict()
    write_bundle(Storage(storage_dir).bundle_dir(f"mdl_{name}"), info, weights)
    engine = open_engine(Settings(storage_dir=storage_dir))
    with session_factory(engine).begin() as session:
        dataset = Dataset(id=f"ds_{name}", name=name, task="segmentation", classes=["pit"])
        session.add(dataset)
        session.flush()
        version = Version(
            id=f"ver_{name}",
            dataset_id=dataset.id,
            digest=f"{name:0<64}",
            classes=["pit"],
            split={},
            statistics={},
        )
        session.add(version)
        session.flush()
        session.add(Job(id=f"job_{name}", version_id=version.id, status="succeeded", spec={}))
        session.flush()
        session.add(
            Model(
                id=f"mdl_{name}",
                job_id=f"job_{name}",
                version_id=version.id,
                report={"metrics": {}, "operating_point": {}},
            )
        )
    engine.dispose()
    return f"mdl_{name}"
