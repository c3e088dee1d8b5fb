"""Counting, checkpointing and the pure parts of preflight."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import SegmentationLoss, build_model
from models.spec import ModelSpec
from norm import convert_batchnorm
from training.batches import Batch
from training.config import CropResolution, DataSection, RunConfig
from training.memory.checkpointing import SavedBytes, choose_modules, record_saved_bytes
from training.memory.dry_step import BatchShape
from training.memory.estimate import Holdings, phase_peaks, step_time
from training.memory.fake_tensors import SmallForUnknown, fake_copy
from training.memory.ladder import LargestFrames, next_rung, take_rung
from training.memory.live_bytes import LiveBytes
from training.memory.shortage import is_out_of_memory
from training.memory.step_in_flight import step_in_flight, take_trace
from training.optimizer_step import Learner, take_step
from training.preflight import dry_shapes

CONFIG = RunConfig(data=DataSection(manifest=Path("m"), root=Path("r")))
SMALL = ModelSpec(encoder="mobilenet_v3_small", encoder_depth=3, decoder_channels=(16, 8, 8))


Kind = Literal["bn", "cbn", "brn", "gn"]


def network_of(kind: Kind, model: ModelSpec = SMALL) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(model, class_count=2, in_channels=1)
    network = network.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"total_steps": 10} if kind == "brn" else {}
    side_px = 2 * model.stride_px
    converted, _ = convert_batchnorm(
        network, torch.zeros(2, 1, side_px, side_px), kind=kind, **options
    )
    return converted.train()


def learner_of(network: nn.Module) -> Learner:
    loss = SegmentationLoss(torch.tensor([0.01, 0.02]))
    return Learner(network, loss, torch.device("cpu"), torch.float32)


def batch_of(side_px: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 1, side_px, side_px, generator=generator)
    targets = (torch.rand(2, 2, side_px, side_px, generator=generator) < 0.05).byte()
    return Batch(images, targets, torch.ones(2, 1, side_px, side_px, dtype=torch.bool))


def modules_of(network: nn.Module) -> tuple[str, ...]:
    copied = copy.deepcopy(network)
    return choose_modules(record_saved_bytes(copied, lambda: copied(torch.randn(1, 1, 64, 64))))


@pytest.mark.parametrize("kind", ["bn", "cbn", "brn", "gn"])
def test_checkpointing_trains_the_same_bits_and_moves_statistics_once(kind: Kind) -> None:
    trained = []
    for checkpointing in (False, True):
        network = network_of(kind)
        names = tuple(network.state_dict())
        learner = learner_of(network)
        if checkpointing:
            learner = replace(learner, recomputed=modules_of(network))
            assert learner.recomputed
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for step in range(3):
            take_step(learner, [batch_of(64, step)], optimizer, max_gradient_norm=1.0, step=step)
        assert tuple(network.state_dict()) == names
        trained.append(network.state_dict())
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name]), name


@pytest.mark.parametrize("kind", ["bn", "cbn"])
def test_a_step_without_memory_counts_what_a_real_one_holds(kind: Kind) -> None:
    network = network_of(kind)
    learner = replace(learner_of(network), recomputed=modules_of(network))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dry = replace(
        learner, network=fake_copy(network, mode).train(), loss=fake_copy(learner.loss, mode)
    )
    peaks = []
    for tried in (dry, learner):
        with mode if tried is dry else torch.random.fork_rng([]):
            batch = batch_of_zeros(96)
            optimizer = torch.optim.AdamW(tried.network.parameters())
            with LiveBytes() as live, SmallForUnknown():
                take_step(tried, [batch], optimizer, max_gradient_norm=1.0, step=1)
        peaks.append(live.peak_bytes)
        if tried is dry:
            for name, tensor in network.state_dict().items():
                assert torch.equal(tensor, before[name]), name
    # A real layer keeps small matrices from step to step that a dry one makes anew.
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-3)


def batch_of_zeros(side_px: int) -> Batch:
    return Batch(
        torch.randn(2, 1, side_px, side_px),
        torch.zeros(2, 2, side_px, side_px, dtype=torch.uint8),
        torch.ones(2, 1, side_px, side_px, dtype=torch.bool),
    )


def test_checkpointing_lowers_the_peak_of_every_architecture() -> None:
    for model in (ModelSpec(), ModelSpec(architecture="fpn", encoder="mobilenet_v3_small")):
        network = network_of("bn", model)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        names = modules_of(network)
        peaks = []
        for recomputed in ((), names):
            learner = replace(learner_of(fake_copy(network, mode).train()), recomputed=recomputed)
            with mode, LiveBytes() as live, SmallForUnknown():
                dry = replace(learner, loss=fake_copy(learner.loss, mode))
                optimizer = torch.optim.AdamW(dry.network.parameters())
                take_step(dry, [batch_of_zeros(1024)], optimizer, max_gradient_norm=1.0, step=1)
            peaks.append(live.peak_bytes)
        assert peaks[1] < 0.75 * peaks[0]


def trees(depth: int = 3) -> st.SearchStrategy[SavedBytes]:
    """Modules whose own saved bytes are at least their children's, with distinct names."""
    numbers = itertools.count()

    def build(own: int, taken: int, children: list[SavedBytes]) -> SavedBytes:
        saved = own + sum(child.saved_bytes for child in children)
        return SavedBytes(f"m{next(numbers)}", saved, taken, 1, children)

    leaf = st.builds(build, st.integers(0, 100), st.integers(0, 50), st.just([]))
    return st.recursive(
        leaf,
        lambda inner: st.builds(
            build, st.integers(0, 20), st.integers(0, 50), st.lists(inner, min_size=1, max_size=4)
        ),
        max_leaves=20,
    )


@given(trees())
def test_chosen_modules_never_overlap_and_never_raise_the_peak(root: SavedBytes) -> None:
    chosen = set(choose_modules(root))
    entries = {}

    def walk(entry: SavedBytes, inside: bool) -> None:
        taken = entry.name in chosen
        assert not (inside and taken)
        entries[entry.name] = entry
        for child in entry.children:
            walk(child, inside or taken)

    walk(root, inside=False)
    if chosen:
        taken = [entries[name] for name in chosen]
        saved = sum(entry.saved_bytes for entry in taken)
        inputs = sum(entry.input_bytes for entry in taken)
        peak = root.saved_bytes - saved + inputs + max(entry.saved_bytes for entry in taken)
        assert peak < root.saved_bytes


def test_the_ladder_is_climbed_down_in_the_order_that_was_asked_for() -> None:
    ladder = ["crops", "bfloat16", "accumulation", "sampled_slopes", "activation_checkpointing"]
    config = CONFIG.model_copy(
        update={
            "batch_size": 3,
            "memory": CONFIG.memory.model_copy(update={"ladder": tuple(ladder)}),
            "norm": CONFIG.norm.model_copy(update={"kind": "cbn", "slope_positions": 5000}),
        }
    )
    frame, taken = (2000, 2500), []
    while (found := next_rung(config, LargestFrames(frame, (2000, 2500)))) is not None:
        rung, config = found
        taken.append(rung)
        if isinstance(config.resolution, CropResolution):
            frame = (config.resolution.height_px, config.resolution.width_px)
    # Windows are halved until they would show too little, and their sides suit the network.
    assert taken == ["crops"] * 3 + ladder[1:]
    assert frame == (256, 320)
    assert (config.precision, config.images_per_step, config.batch_size) == ("bfloat16", 3, 1)
    assert config.norm.slope_positions == 1024
    assert RunConfig.model_validate(config.model_dump()) == config


def test_accumulation_leaves_the_normalization_that_auto_means() -> None:
    lower = take_rung(CONFIG, "accumulation", LargestFrames((100, 100), (100, 100)))
    assert lower is not None
    assert lower.norm_in_force == CONFIG.norm_in_force


def test_looks_at_whole_frames_take_tiles_alone_and_steps_take_none() -> None:
    frames = LargestFrames((480, 640), (2000, 2500))
    config, sides = CONFIG, []
    while (found := next_rung(config, frames, looking=True)) is not None:
        rung, config = found
        assert rung == "tiles"
        sides.append(config.memory.look_tile_px)
    assert sides == [1280, 640, 320]
    assert config.resolution == CONFIG.resolution
    whole = replace(frames, whole_because="it pools over the frame")
    assert next_rung(CONFIG, whole, looking=True) is None
    lower = next_rung(CONFIG, frames)
    assert lower is not None
    assert lower[0] == "activation_checkpointing"


def test_the_default_ladder_changes_neither_precision_nor_what_training_sees() -> None:
    assert not {"bfloat16", "crops"} & set(CONFIG.memory.ladder)


def test_the_peak_is_that_of_the_dearest_phase() -> None:
    held = Holdings(1000, 100, 400, 900, 2000, 30, 100)
    peaks = phase_peaks(held, gpu_step_factor=2.0)
    # The GPU holds neither frames that wait nor checkpoints.
    assert peaks == {"training_step": 900 + 400 + 2 * 500, "whole_frame": 900 + 400 + 100 + 2000}


@given(st.floats(0.01, 10), st.floats(0, 10), st.integers(1, 50))
def test_step_time_is_exact_where_it_is_linear(rate: float, constant: float, factor: int) -> None:
    def seconds(pixels: int) -> float:
        return constant + rate * pixels

    low, high = step_time((100, 400), (seconds(100), seconds(400)), 400 * factor)
    assert low == pytest.approx(seconds(400 * factor))
    assert high >= low


def test_dry_steps_keep_the_batch_and_suit_the_stride() -> None:
    small, large = dry_shapes(BatchShape(2, 2016, 2528), 32, 256 * 256)
    assert small.frames == large.frames == 2
    assert small.pixels < large.pixels <= 1.3 * 256 * 256
    assert all(
        side % 32 == 0 for shape in (small, large) for side in (shape.height_px, shape.width_px)
    )
    tiny = BatchShape(1, 64, 96)
    assert dry_shapes(tiny, 32, 256 * 256)[1] == tiny


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_failures(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_step_that_ends_leaves_no_trace_and_one_that_is_killed_does(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    with step_in_flight(path, 7):
        killed = path.read_bytes()
    assert take_trace(path) is None
    path.write_bytes(killed)
    trace = take_trace(path)
    assert trace is not None
    assert trace.step == 7
    assert not path.exists()
    path.write_bytes(killed[:5])
    assert take_trace(path) is None
    assert not path.exists()
