"""Every engine answers as the network does, and one that does not is refused."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch

from models import (
    ClassThreshold,
    EngineError,
    FrozenModel,
    OperatingPoint,
    Pixels,
    load_bundle,
)
from models.engine_preparation import (
    FrameSource,
    StoredFrame,
    prepare_engines,
    spread,
    torch_engine,
)
from models.engine_record import (
    RECORD_NAME,
    EngineRecord,
    Machine,
    check_usable,
    load_exported,
    model_digest,
    read_record,
    write_record,
)
from models.engines import Engine, EngineName, OnnxRuntimeEngine, TorchEngine, processor_has_bf16
from models.exporting import ONNX_NAME, OPENVINO_NAME
from models.parity import FrameAnswer, GoldenFrame, ParityTally, look, synthetic_extremes
from models.runtime import engine_probabilities
from service.serving.frame_queue import MAX_BATCH
from service.serving.served_models import ServedModels
from service.storage import Storage
from tests.trained_bundle import patched_frame, write_trained

CALIBRATION_FRAMES = 36
SIZE_PX = (70, 101)
# Activations of eight frames of it take hundreds of megabytes.
LINE_SIZE_PX = (352, 448)
EXPORTED = (
    "onnxruntime-fp32",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-int8",
    "openvino-int8-mixed",
)


def stored(seeds: range) -> list[StoredFrame]:
    return [StoredFrame(f"frame {seed}", partial(patched_frame, seed)) for seed in seeds]


@dataclass(frozen=True)
class Prepared:
    bundle: Path
    folder: Path
    record: EngineRecord

    def model(self) -> FrozenModel:
        return FrozenModel(load_bundle(self.bundle), "cpu")

    def engine(self, name: Any) -> Engine:
        return load_exported(self.folder, self.record, name)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    pytest.importorskip("openvino", reason="a box that serves on its GPU may lack OpenVINO")
    root = tmp_path_factory.mktemp("engines")
    write_trained(root / "bundle", [patched_frame(seed) for seed in range(CALIBRATION_FRAMES)])
    frames = FrameSource(
        calibration=stored(range(CALIBRATION_FRAMES)), training=stored(range(100, 106))
    )
    record = prepare_engines(root / "bundle", root / "exports", frames, "cpu")
    return Prepared(root / "bundle", root / "exports", record)


def available(name: str) -> None:
    if name == "openvino-bf16" and not processor_has_bf16():
        pytest.skip("this processor has no bfloat16")


def test_the_record_says_what_was_compared_measured_and_chosen(prepared: Prepared) -> None:
    record = prepared.record
    assert read_record(prepared.folder) == record
    assert record.frame_size == SIZE_PX
    golden = record.golden
    assert (golden.available, golden.scored, golden.compared) == (CALIBRATION_FRAMES, 36, 32)
    assert (golden.synthetic, golden.quantized_on) == (5, 6)
    for name in ("openvino-fp32", "onnxruntime-fp32"):
        measured = record.of(name)
        assert measured is not None
        assert measured.refusal is None
        assert measured.parity is not None
        assert (measured.parity.frames, measured.parity.flips) == (37, 0)
        assert measured.parity.largest_difference < 1e-4
        assert measured.median_ms is not None
    chosen = record.of(record.chosen)
    assert chosen is not None
    assert chosen.refusal is None
    present = {path.name for path in prepared.folder.iterdir()}
    assert present == {*record.files, RECORD_NAME}
    check_usable(record, load_bundle(prepared.bundle).info, Machine.here(torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # Sums in another order; 8 bits of a bfloat16's mantissa through the network's depth; 8 bits;
    # 8 bits that end where layers are narrow, within what the gate allows a score.
    list(zip(EXPORTED, (1e-5, 1e-5, 0.05, 0.25, 0.1), strict=True)),
)
def test_an_exported_engine_answers_as_the_network_at_any_size(
    prepared: Prepared, name: str, tolerance: float
) -> None:
    available(name)
    model, engine = prepared.model(), prepared.engine(name)
    preprocessing = model.info.preprocessing
    for height, width in ((8, 8), (33, 50), SIZE_PX, (33, 50)):
        pixels = np.resize(patched_frame(3), (height, width))
        expected = model.probabilities(pixels)
        ((answer, _),) = engine_probabilities(engine, [pixels], preprocessing)
        assert answer.shape == (2, height, width)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", EXPORTED)
def test_frames_that_wait_together_get_the_answers_they_would_get_alone(
    prepared: Prepared, name: str
) -> None:
    available(name)
    engine, preprocessing = prepared.engine(name), prepared.model().info.preprocessing
    frames = [patched_frame(seed) for seed in (0, 1, 2)]
    alone = [engine_probabilities(engine, [frame], preprocessing)[0][0] for frame in frames]
    kept = [answer.copy() for answer in alone]
    together = engine_probabilities(engine, frames, preprocessing)
    for answer, copy, (batched, _) in zip(alone, kept, together, strict=True):
        np.testing.assert_array_equal(answer, copy, "a later frame wrote over an earlier answer")
        np.testing.assert_allclose(batched, answer, rtol=0, atol=1e-5)


def test_a_served_engine_has_its_largest_batchs_memory_before_the_first_frame(
    prepared: Prepared, tmp_path: Path
) -> None:
    storage = Storage(tmp_path)
    copytree(prepared.bundle, storage.bundle_dir("mdl_a"))
    copytree(prepared.folder, storage.exports_dir("mdl_a"))
    chosen = {"chosen": "openvino-fp32", "frame_size": LINE_SIZE_PX}
    write_record(storage.exports_dir("mdl_a"), prepared.record.model_copy(update=chosen))
    served = ServedModels(storage, "cpu")
    model = served.load("mdl_a")
    served.close()
    assert isinstance(model, FrozenModel)
    assert model.engine.name == "openvino-fp32"

    frame = patched_frame(0, size=LINE_SIZE_PX)
    before = psutil.Process().memory_info().rss
    for count in range(1, MAX_BATCH + 1):
        model.inspect_together([frame] * count)
    grown_mib = (psutil.Process().memory_info().rss - before) / 1024**2
    # Nearly 300 MiB where the largest batch comes as a surprise; answers take some too.
    assert grown_mib < 100


def test_another_engine_takes_over_between_two_frames_and_says_so(prepared: Prepared) -> None:
    model = prepared.model()
    before = model.inspect(patched_frame(5))
    model.use(prepared.engine("openvino-fp32"), notes=("served by an export",))
    after = model.inspect(patched_frame(5))
    assert (before.engine, after.engine) == ("torch-fp32", "openvino-fp32")
    assert before.verdict == after.verdict
    assert "served by an export" in after.notes
    assert "served by an export" not in before.notes


def test_an_engine_that_fails_is_replaced_by_torch_and_each_answer_says_so(
    prepared: Prepared,
) -> None:
    class Failing:
        name: EngineName = "openvino-fp32"
        device = torch.device("cpu")

        def probabilities(self, pixels: Pixels) -> Any:
            raise EngineError("engine_failed", "openvino-fp32 failed at a frame: out of memory")

    model = prepared.model()
    expected = model.inspect(patched_frame(5))
    model.use(Failing())
    for _ in range(2):
        answer = model.inspect(patched_frame(5))
        assert (answer.verdict, answer.engine) == (expected.verdict, "torch-fp32")
        assert any("out of memory" in note for note in answer.notes)


def refusal_of(engine: Engine, model: FrozenModel, name: Any = "onnxruntime-fp32") -> str | None:
    tally = ParityTally(name, model.info)
    golden = [GoldenFrame(str(seed), patched_frame(seed)) for seed in range(12)]
    golden += synthetic_extremes(SIZE_PX, model.info.preprocessing)
    for frame in golden:
        expected = look(model.reference, frame.pixels, model.info)
        tally.add(frame.name, expected, look(engine, frame.pixels, model.info))
    return tally.outcome().refusal


class Exchanged(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.network(batch)
        return answer.flip(1)


def sabotaged(model: FrozenModel, how: str) -> Engine:
    network, preprocessing = model.network, model.info.preprocessing
    if how == "exchanged outputs":
        network = Exchanged(network)
    elif how == "another mean":
        preprocessing = preprocessing.model_copy(update={"mean": (90 * 257.0,)})
    elif how == "another deviation":
        preprocessing = preprocessing.model_copy(update={"std": (29 * 257.0,)})
    elif how == "no numbers":
        preprocessing = preprocessing.model_copy(update={"std": (0.0,)})
    return TorchEngine(network, preprocessing, model.device)


@pytest.mark.parametrize(
    "how", ["exchanged outputs", "another mean", "another deviation", "no numbers"]
)
def test_a_sabotaged_engine_is_refused(prepared: Prepared, how: str) -> None:
    model = prepared.model()
    assert refusal_of(sabotaged(model, "not at all"), model) is None
    assert refusal_of(sabotaged(model, how), model)


def test_an_exported_file_with_other_weights_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    graph = onnx.load(prepared.folder / ONNX_NAME)
    heaviest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = onnx.numpy_helper.to_array(heaviest).copy()
    weights[: len(weights) // 2] *= 0.5
    heaviest.CopyFrom(onnx.numpy_helper.from_array(weights, heaviest.name))
    onnx.save(graph, tmp_path / ONNX_NAME)
    model = prepared.model()
    assert refusal_of(OnnxRuntimeEngine(prepared.folder / ONNX_NAME), model) is None
    refusal = refusal_of(OnnxRuntimeEngine(tmp_path / ONNX_NAME), model)
    assert refusal
    # And were it put in the place of the one that was compared, it would not be loaded.
    with pytest.raises(EngineError, match="not the file that was compared"):
        load_exported(tmp_path, prepared.record, "onnxruntime-fp32")


def test_a_flip_is_told_with_its_frame_and_both_verdicts(prepared: Prepared) -> None:
    tally = ParityTally("openvino-int8", prepared.model().info)
    tally.add("part 6", FrameAnswer("OK", (), (0.5, 0.1)), FrameAnswer("OK", (), (0.45, 0.1)))
    assert tally.outcome().refusal is None
    pit = FrameAnswer("NG", ("pit",), (0.99, 0.1))
    tally.add("part 7", pit, FrameAnswer("OK", (), (0.99, 0.1)))
    tally.add("part 8", pit, FrameAnswer("NG", ("pit", "dent"), (0.99, 0.1)))
    # Of a drawn extreme the verdict alone is compared.
    tally.add("black", pit, FrameAnswer("NG", ("pit",), (0.6, 0.1)), is_drawn=True)
    outcome = tally.outcome()
    assert (outcome.frames, outcome.flips) == (4, 2)
    assert outcome.listed[0].frame == "part 7"
    assert outcome.largest_difference == pytest.approx(0.05)
    assert outcome.refusal is not None
    assert "first part 7: OK instead of NG (pit)" in outcome.refusal


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_runtime_that_is_not_installed_is_named_and_torch_serves_without(
    prepared: Prepared, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in EXPORTED:
        if name.startswith(library):
            with pytest.raises(EngineError, match=f"{library} is not installed") as missing:
                prepared.engine(name)
            assert missing.value.code == "library_missing"
    half = torch_engine(prepared.model(), "torch-bf16")
    assert half.probabilities(np.zeros((1, 8, 8, 1), np.uint16)).shape == (1, 2, 8, 8)


def test_torchs_engines_are_compared_without_any_file_where_none_is_asked_for(
    prepared: Prepared, tmp_path: Path
) -> None:
    frames = FrameSource(calibration=stored(range(4)), training=stored(range(100, 102)))
    record = prepare_engines(prepared.bundle, tmp_path / "none", frames, "cpu", exports=False)
    assert record.files == {}
    assert {engine.name for engine in record.engines} <= {"torch-fp32", "torch-bf16"}
    assert [path.name for path in (tmp_path / "none").iterdir()] == [RECORD_NAME]


def test_the_golden_frames_show_both_verdicts(prepared: Prepared) -> None:
    model = prepared.model()
    verdicts = {model.inspect(patched_frame(seed)).verdict for seed in range(CALIBRATION_FRAMES)}
    assert verdicts == {"OK", "NG"}


def test_a_damaged_or_missing_export_is_not_loaded(prepared: Prepared, tmp_path: Path) -> None:
    for name in prepared.record.files:
        (tmp_path / name).write_bytes((prepared.folder / name).read_bytes())
    weights = tmp_path / OPENVINO_NAME.replace(".xml", ".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.bin") as damaged:
        load_exported(tmp_path, prepared.record, "openvino-fp32")
    assert damaged.value.code == "export_damaged"
    weights.unlink()
    with pytest.raises(EngineError, match=r"model\.bin is missing"):
        load_exported(tmp_path, prepared.record, "openvino-fp32")
    (tmp_path / RECORD_NAME).write_text('{"format_version": 1')
    with pytest.raises(EngineError) as record:
        read_record(tmp_path)
    assert record.value.code == "engines_damaged"


def test_what_was_measured_elsewhere_or_of_other_thresholds_is_not_used(
    prepared: Prepared,
) -> None:
    info = load_bundle(prepared.bundle).info
    here = Machine.here(torch.device("cpu"))
    libraries = {**here.libraries, "openvino": "2031.1"}
    elsewhere = here.model_copy(update={"processor": "another", "libraries": libraries})
    with pytest.raises(EngineError, match="processor, openvino") as machine:
        check_usable(prepared.record, info, elsewhere)
    assert machine.value.code == "engines_of_another_machine"
    stricter = OperatingPoint(
        classes={**info.operating_point.classes, "pit": ClassThreshold(threshold=0.7)}
    )
    changed = info.model_copy(update={"operating_point": stricter})
    with pytest.raises(EngineError) as other:
        check_usable(prepared.record, changed, here)
    assert other.value.code == "engines_of_another_model"
    # What the report says of the model besides decides no verdict.
    assert model_digest(info) == model_digest(info.model_copy(update={"metrics": {"dice": 1}}))


def test_half_precision_torch_keeps_the_models_own_network(prepared: Prepared) -> None:
    model = prepared.model()
    expected = model.probabilities(patched_frame(2))
    half = torch_engine(model, "torch-bf16")
    ((answer, _),) = engine_probabilities(half, [patched_frame(2)], model.info.preprocessing)
    assert 0 < np.abs(answer - expected).max() < 0.1
    np.testing.assert_array_equal(model.probabilities(patched_frame(2)), expected)


def test_frames_are_spread_over_the_whole_set() -> None:
    frames = stored(range(10))
    assert [frame.name for frame in spread(frames, 4)] == [
        "frame 0",
        "frame 3",
        "frame 6",
        "frame 9",
    ]
    assert spread(frames, 10) == frames
