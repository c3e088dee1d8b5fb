"""What must hold of a GPU's engines: the network's answers, from any thread, in flat memory."""

import gc
import threading
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from models import Bundle, FrozenModel, find_defects, load_bundle
from models.cuda_graphs import release_cached_memory
from models.engine_preparation import FrameSource, StoredFrame, prepare_engines, torch_engine
from models.engine_record import Machine, check_usable, read_record
from models.engines import EngineName, TorchEngine
from models.parity import TOLERANCE
from models.runtime import engine_answers, engine_probabilities, warm_up
from tests.trained_bundle import patched_frame, write_trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

HALF: tuple[EngineName, ...] = ("torch-bf16", "torch-fp16")
CALIBRATION_FRAMES = 36
# Large enough that a forward takes most of the memory that an engine holds.
LARGE = (512, 768)
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("cuda")
    for depth in (8, 16):
        frames = [patched_frame(seed, bit_depth=depth) for seed in range(CALIBRATION_FRAMES)]
        write_trained(root / str(depth), frames, bit_depth=depth)
    return {depth: root / str(depth) for depth in (8, 16)}


def on_gpu(bundles: dict[int, Path], depth: int = 16) -> FrozenModel:
    return FrozenModel(load_bundle(bundles[depth]), "cuda")


def held_bytes() -> int:
    gc.collect()
    release_cached_memory(torch.device("cuda"))
    return torch.cuda.memory_reserved()


@pytest.mark.parametrize("depth", [8, 16])
def test_the_reference_computes_in_float32_and_leaves_torchs_setting_as_it_was(
    bundles: dict[int, Path], depth: Literal[8, 16]
) -> None:
    before = torch.backends.cudnn.allow_tf32
    on_processor = FrozenModel(load_bundle(bundles[depth]), "cpu")
    model = on_gpu(bundles, depth)
    for seed in range(6):
        pixels = patched_frame(seed, bit_depth=depth)
        difference = np.abs(model.probabilities(pixels) - on_processor.probabilities(pixels))
        # TF32 would be off by ten times as much.
        assert difference.max() < TOLERANCE["torch-fp32"]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("depth", [8, 16])
def test_a_recorded_pass_answers_as_the_eager_one(
    bundles: dict[int, Path], name: EngineName, depth: Literal[8, 16]
) -> None:
    model = on_gpu(bundles, depth)
    recorded, preprocessing = torch_engine(model, name), model.info.preprocessing
    frames = [patched_frame(seed, bit_depth=depth) for seed in range(5)]
    warm_up(recorded, frames[0], preprocessing)
    assert recorded.captured_shapes == ((1, 72, 104, 1),)
    answers = [engine_probabilities(recorded, [pixels], preprocessing)[0][0] for pixels in frames]
    kept = [answer.copy() for answer in answers]
    for pixels, answer, copy in zip(frames, answers, kept, strict=True):
        # An engine's first frame of a size is not recorded.
        eager = torch_engine(model, name)
        ((expected, _),) = engine_probabilities(eager, [pixels], preprocessing)
        assert eager.captured_shapes == ()
        np.testing.assert_array_equal(answer, expected)
        np.testing.assert_array_equal(answer, copy, "a later frame wrote over an earlier answer")


def test_each_size_is_recorded_when_it_comes_twice_in_a_row_and_few_are_kept(
    bundles: dict[int, Path],
) -> None:
    model = on_gpu(bundles)
    engine, preprocessing = torch_engine(model, "torch-fp16"), model.info.preprocessing
    for width in (64, 72, 64, 72):
        engine_answers(engine, [patched_frame(1, size=(64, width))], preprocessing)
    assert list(engine.captured_shapes) == []
    for width in range(64, 64 + 12 * 8, 8):
        warm_up(engine, patched_frame(1, size=(64, width)), preprocessing)
    assert [shape[2] for shape in engine.captured_shapes] == list(range(96, 160, 8))


@pytest.mark.parametrize("size", [(8, 8), (33, 50), (70, 101), (16, 160)])
@pytest.mark.parametrize("name", ["torch-fp32", "torch-fp16"])
def test_defects_found_from_the_devices_peaks_are_those_found_without(
    bundles: dict[int, Path], name: EngineName, size: tuple[int, int]
) -> None:
    model = on_gpu(bundles)
    engine = torch_engine(model, name)
    classes, point = model.info.classes, model.info.operating_point
    pixels = np.resize(patched_frame(3), size)
    for _ in range(3):
        (answer,) = engine_answers(engine, [pixels], model.info.preprocessing)
        assert answer.probabilities.shape == (2, *size)
        found = find_defects(answer.probabilities, classes, point, answer.peaks)
        assert found == find_defects(answer.probabilities, classes, point)


@pytest.mark.parametrize("name", HALF)
def test_frames_that_wait_together_get_the_answers_they_would_get_alone(
    bundles: dict[int, Path], name: EngineName
) -> None:
    model = on_gpu(bundles)
    engine, preprocessing = torch_engine(model, name), model.info.preprocessing
    frames = [patched_frame(seed) for seed in range(3)]
    warm_up(engine, frames[0], preprocessing)
    for _ in range(3):
        together = engine_answers(engine, frames, preprocessing)
        for pixels, batched in zip(frames, together, strict=True):
            ((alone, _),) = engine_probabilities(engine, [pixels], preprocessing)
            # What is wrong with a batch is another frame's answer; rounding is the precision's.
            np.testing.assert_allclose(batched.probabilities, alone, rtol=0, atol=0.02)
    assert len({answer.probabilities.tobytes() for answer in together}) == 3


def test_the_gate_compares_a_gpus_engines_first_and_needs_no_exports(
    bundles: dict[int, Path], tmp_path: Path
) -> None:
    def stored(seeds: range) -> list[StoredFrame]:
        return [StoredFrame(f"frame {seed}", partial(patched_frame, seed)) for seed in seeds]

    frames = FrameSource(calibration=stored(range(CALIBRATION_FRAMES)), training=[])
    record = prepare_engines(bundles[16], tmp_path / "exports", frames, "cuda", exports=False)
    assert read_record(tmp_path / "exports") == record
    assert [engine.name for engine in record.engines] == ["torch-fp32", *HALF]
    assert record.machine.accelerator == torch.cuda.get_device_name()
    for name in HALF:
        measured = record.of(name)
        assert measured is not None
        assert measured.device == "cuda"
        assert measured.parity is not None
        # What the gate asks in half precision; of bfloat16 a hard frame may flip.
        assert measured.parity.largest_difference < 0.05
        assert (measured.parity.frames, measured.median_ms is None) == (37, False)
    half = record.of("torch-fp16")
    assert half is not None
    assert half.refusal is None
    chosen = record.of(record.chosen)
    assert chosen is not None
    assert chosen.refusal is None
    info = load_bundle(bundles[16]).info
    check_usable(record, info, Machine.here(torch.device("cuda")))


def test_an_engine_is_recorded_in_one_thread_while_another_answers(
    bundles: dict[int, Path],
) -> None:
    model = on_gpu(bundles)
    preprocessing = model.info.preprocessing
    pixels = np.resize(patched_frame(3), LARGE)
    serving = torch_engine(model, "torch-fp16")
    warm_up(serving, pixels, preprocessing)
    model.use(serving)
    expected = model.probabilities(pixels)
    exact = on_gpu(bundles)
    expected_exact = exact.probabilities(pixels)
    stop = threading.Event()
    failures: list[Exception] = []

    def answer(asked: FrozenModel, right: Any) -> None:
        try:
            while not stop.is_set():
                np.testing.assert_array_equal(asked.probabilities(pixels), right)
        except Exception as error:  # noqa: BLE001 - the thread that waits tells of it.
            failures.append(error)

    threads = [
        threading.Thread(target=answer, args=(model, expected)),
        threading.Thread(target=answer, args=(exact, expected_exact)),
    ]
    for thread in threads:
        thread.start()
    try:
        made = []
        for name in (*HALF, *HALF):
            made.append(torch_engine(model, name))
            warm_up(made[-1], pixels, preprocessing)
            assert len(made[-1].captured_shapes) == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    # They share their activations' memory, and none has touched another's answer.
    for engine in (made[1], made[3]):
        ((answered, _),) = engine_probabilities(engine, [pixels], preprocessing)
        np.testing.assert_array_equal(answered, expected)


def test_hot_swaps_leave_no_memory_behind(bundles: dict[int, Path]) -> None:
    pixels = np.resize(patched_frame(3), LARGE)
    began_bytes = held_bytes()

    def serve_another(old: FrozenModel | None) -> FrozenModel:
        model = on_gpu(bundles)
        engine = torch_engine(model, "torch-fp16")
        # The one that serves is still there while the next one gets ready.
        warm_up(engine, pixels, model.info.preprocessing)
        model.use(engine)
        assert old is None or old.inspect(pixels).engine == "torch-fp16"
        assert model.inspect(pixels).engine == "torch-fp16"
        return model

    model: FrozenModel | None = None
    held: list[int] = []
    for _ in range(8):
        model = serve_another(model)
        held.append(held_bytes())
    # Torch takes memory in pieces of two megabytes.
    assert max(held[3:]) <= max(held[:3]) + 2 * MEGABYTE
    del model
    assert held_bytes() <= began_bytes + 2 * MEGABYTE


def test_two_models_kept_warm_share_the_memory_of_their_activations(
    bundles: dict[int, Path],
) -> None:
    pixels = np.resize(patched_frame(3), LARGE)
    began_bytes = held_bytes()
    models = []
    held = []
    for _ in range(4):
        models.append(on_gpu(bundles))
        engine = torch_engine(models[-1], "torch-fp16")
        warm_up(engine, pixels, models[-1].info.preprocessing)
        models[-1].use(engine)
        held.append(held_bytes() - began_bytes)
    assert held[-1] < 2.5 * held[0]
    expected = models[0].probabilities(pixels)
    for model in models:
        np.testing.assert_array_equal(model.probabilities(pixels), expected)


class _Hungry(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 50, device=batch.device)


def test_an_engine_that_finds_no_memory_leaves_the_line_to_the_reference(
    bundles: dict[int, Path],
) -> None:
    model = on_gpu(bundles)
    expected = model.inspect(patched_frame(5))
    hungry = TorchEngine(_Hungry(), model.info.preprocessing, model.device, "torch-fp16")
    model.use(hungry)
    answer = model.inspect(patched_frame(5))
    assert (answer.engine, answer.verdict) == ("torch-fp32", expected.verdict)
    assert any("memory" in note for note in answer.notes)


def test_a_model_and_its_engine_run_on_the_device_that_is_named(bundles: dict[int, Path]) -> None:
    last = f"cuda:{torch.cuda.device_count() - 1}"
    bundle: Bundle = load_bundle(bundles[16])
    model = FrozenModel(bundle, last)
    engine = torch_engine(model, "torch-fp16")
    warm_up(engine, patched_frame(3), model.info.preprocessing)
    assert engine.captured_shapes
    assert next(model.network.parameters()).device == torch.device(last)
