"""Checkpoint, folded network, ONNX, OpenVINO and HTTP judge real frames alike."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sqlalchemy import Engine, update

from data import Manifest
from data.dataset import load_frame
from models import (
    BundleInfo,
    ClassThreshold,
    FrozenModel,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    SegmentationLoss,
    build_network,
    find_defects,
    frame_probabilities,
    load_bundle,
    write_bundle,
)
from models.engine_preparation import torch_engine
from models.engine_record import load_exported, read_record
from models.engines import Engine as Runtime
from models.engines import TorchEngine
from models.parity import FrameAnswer, ParityTally, look
from service.database.engine import session_factory
from service.database.tables import Model
from service.serving.engine_program import prepare
from service.settings import Settings
from service.storage import Storage

SPEC = ModelSpec(encoder="mobilenet_v3_small", encoder_depth=3, decoder_channels=(16, 8, 8))
STEPS = 30
WINDOW_PX = 160
TRAINED, JUDGED = 4, 4

Frame = tuple[Any, NDArray[np.uint8]]


def bsdata_files(root: Path) -> list[tuple[str, Path]]:
    labels = sorted((root / "label").glob("01_*.json"))[: TRAINED + JUDGED]
    images = [root / "data" / f"{path.stem}.jpg" for path in labels]
    return [(path.name, path) for path in (*images, *labels)]


def weld_seg_files(root: Path) -> list[tuple[str, Path]]:
    # The smallest files are of the smallest frames, which are of a megapixel all the same.
    images = sorted(
        (root / "data" / "test" / "images").glob("*.jpg"), key=lambda path: path.stat().st_size
    )[: TRAINED + JUDGED]
    masks = [root / "data" / "test" / "masks" / f"{path.stem}_mask.png" for path in images]
    return [(f"{path.parent.name}/{path.name}", path) for path in (*images, *masks)]


FILES = {"bsdata": bsdata_files, "weld_seg": weld_seg_files}


def frozen(client: TestClient, files: Sequence[tuple[str, Path]]) -> Any:
    body: Any = {"name": "real", "task": "segmentation"}
    dataset = client.post("/datasets", json=body).json()
    parts = [("files", (name, path.read_bytes())) for name, path in files]
    answer = client.post(f"/datasets/{dataset['id']}/images", files=parts)
    assert answer.status_code < 300, answer.text
    split = {"train": 0.5, "calibration": 0.5, "test": 0.0}
    answer = client.post(f"/datasets/{dataset['id']}/versions", json={"split": split})
    assert answer.status_code == 201, answer.text
    return answer.json()


def frames_of(manifest: Manifest, root: Path, split: str) -> list[Frame]:
    return [
        load_frame(item, root, manifest.classes, 3, bayer=None)
        for item in manifest.items
        if item.split == split
    ]


def train(path: Path, frames: Sequence[Frame], judged: Sequence[Frame], name: str) -> None:
    """Train on windows around defects until defects stand out, and write the bundle."""
    info = BundleInfo(
        classes=(name,),
        model=SPEC,
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=3, bit_depth=8, mean=(110.0,) * 3, std=(50.0,) * 3, stride_px=SPEC.stride_px
        ),
        operating_point=OperatingPoint(classes={name: ClassThreshold()}),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = build_network(info).train()
    loss = SegmentationLoss(torch.tensor([0.05]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(STEPS):
        images, targets = [], []
        for index in rng.integers(0, len(frames), 4):
            pixels, mask = frames[index]
            marked = np.argwhere(mask[:, :, 0])
            at = marked[rng.integers(len(marked))] if len(marked) else np.array([0, 0])
            top, left = (
                int(np.clip(at[axis] - rng.integers(WINDOW_PX), 0, pixels.shape[axis] - WINDOW_PX))
                for axis in (0, 1)
            )
            window = np.s_[top : top + WINDOW_PX, left : left + WINDOW_PX]
            images.append(torch.tensor((pixels[window] - 110.0) / 50.0).permute(2, 0, 1).float())
            targets.append(torch.tensor(mask[window]).permute(2, 0, 1).float())
        batch, target = torch.stack(images), torch.stack(targets)
        optimizer.zero_grad()
        loss(network(batch), target, torch.ones_like(target)).backward()
        optimizer.step()
    network.eval()
    device = torch.device("cpu")
    # Between the peaks of two of the judged frames: one half is OK, and none lies on it.
    peaks = sorted(
        float(frame_probabilities(network, pixels, info.preprocessing, device)[0].max())
        for pixels, _ in judged
    )
    threshold = (peaks[len(peaks) // 2 - 1] + peaks[len(peaks) // 2]) / 2
    point = OperatingPoint(classes={name: ClassThreshold(threshold=threshold)})
    write_bundle(path, info.model_copy(update={"operating_point": point}), network.state_dict())


def refusal(runtime: Runtime, model: FrozenModel, frames: Sequence[Frame]) -> str | None:
    tally = ParityTally(runtime.name, model.info)
    for number, (pixels, _) in enumerate(frames):
        expected = look(model.reference, pixels, model.info)
        tally.add(str(number), expected, look(runtime, pixels, model.info))
    return tally.outcome().refusal


@pytest.mark.slow
@pytest.mark.datasets
@pytest.mark.parametrize("name", FILES)
def test_every_form_of_a_model_judges_real_frames_alike(
    name: str,
    datasets_dir: Path,
    client: TestClient,
    engine: Engine,
    settings: Settings,
    storage: Storage,
    add_model: Any,
    tmp_path: Path,
) -> None:
    files = FILES[name](datasets_dir / name)
    version = frozen(client, files)
    manifest = Manifest.read(storage.manifest_path(version["digest"]))
    judged = frames_of(manifest, storage.root, "calibration")
    assert len(judged) == JUDGED
    path = tmp_path / "trained"
    train(path, frames_of(manifest, storage.root, "train"), judged, manifest.classes[0])
    model_id = add_model("real", path)
    with session_factory(engine).begin() as session:
        session.execute(update(Model).values(version_id=version["id"]))
    assert prepare(settings, model_id, version["digest"]) is None

    folder = storage.exports_dir(model_id)
    record = read_record(folder)
    assert record is not None
    checkpoint, model = load_bundle(path), FrozenModel(load_bundle(path), "cpu")
    info = model.info
    verdicts = set()
    for pixels, _ in judged:
        found = frame_probabilities(
            checkpoint.network, pixels, info.preprocessing, torch.device("cpu")
        )[0]
        defects, _ = find_defects(found, info.classes, info.operating_point)
        folded = look(model.reference, pixels, info)
        assert folded.verdict == ("NG" if defects else "OK")
        assert folded.peaks[0] == pytest.approx(float(found.max()), abs=1e-4)
        verdicts.add(folded.verdict)
    assert verdicts == {"OK", "NG"}, "frames that all get one verdict would prove little"

    # Each that may serve judges as the folded network does, ONNX and OpenVINO among them.
    able = [measured.name for measured in record.engines if measured.refusal is None]
    assert {"onnxruntime-fp32", "openvino-fp32"} <= set(able)
    for engine_name in able:
        if engine_name.startswith("torch"):
            runtime: Runtime = torch_engine(model, engine_name)
        else:
            runtime = load_exported(folder, record, engine_name)
        assert refusal(runtime, model, judged) is None, engine_name

    check_http(client, model_id, manifest, storage, model, record.chosen)

    darker = info.preprocessing.model_copy(update={"mean": (80.0,) * 3})
    assert refusal(TorchEngine(model.network, darker, model.device), model, judged)


def check_http(
    client: TestClient,
    model_id: str,
    manifest: Manifest,
    storage: Storage,
    model: FrozenModel,
    chosen: str,
) -> None:
    """The files themselves, sent to the service, get the folded network's verdicts."""
    assert client.put("/deployments/default", json={"model": model_id}).status_code == 201
    for item in manifest.items:
        if item.split != "calibration":
            continue
        raw = (storage.root / item.file).read_bytes()
        answer = client.post("/predict", files={"file": (item.name, raw)}).json()
        pixels, _ = load_frame(item, storage.root, manifest.classes, 3, bayer=None)
        expected: FrameAnswer = look(model.reference, pixels, model.info)
        assert answer["model"]["engine"] == chosen
        assert answer["verdict"] == expected.verdict
        assert {defect["class"] for defect in answer["defects"]} == set(expected.found)
