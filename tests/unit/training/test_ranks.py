"""Two real processes over gloo that share optimizer steps, beside one that takes them alone."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models import DetectionSpec, ModelSpec
from models.detection import build_detector
from norm import convert_batchnorm
from training.batches import Batch
from training.detection import DetectionBatch, DetectorLoss
from training.errors import CheckpointError, DivergedError, RanksDisagreeError
from training.loop_state import LoopState, Trained, checkpoint_content, restore_checkpoint
from training.optimizer_step import ALONE, Learner, take_step
from training.ranks import Ranks

RANKS = 2
STEPS = 4
SIDE_PX = 10
# What each rank sees of a step: the second has less, and in the last step nothing.
SHARES: dict[int, tuple[int, ...]] = {0: (2, 2, 2, 1), 1: (2, 2, 1, 0)}
EVEN_SHARES: dict[int, tuple[int, ...]] = {0: (1, 1, 1, 1), 1: (1, 1, 1, 1)}
KINDS: dict[str, dict[str, Any]] = {
    "gn": {"kind": "gn"},
    "frozen": {"kind": "frozen"},
    "bn": {"kind": "bn"},
    "separate windows": {"kind": "cbn", "window_size": 3},
    "pooled windows": {"kind": "cbn", "window_size": 3, "ranks": "pooled"},
}


class CrossEntropy(nn.Module):
    """In float64, so that only the order of sums tells one process from two."""

    def forward(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), reduction="none"
        )
        return (loss * valid).sum() / valid.sum()


class RunsOutOnce(CrossEntropy):
    """The loss on a device whose memory ends at the second of its calls."""

    calls = 0

    def forward(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise torch.OutOfMemoryError("no memory left")
        return super().forward(logits, targets, valid)


def batch(step: int, place: int) -> Batch:
    generator = torch.Generator().manual_seed(10 * step + place)
    images = torch.randn(1, 1, SIDE_PX, SIDE_PX, generator=generator, dtype=torch.float64)
    valid = torch.ones(1, 1, SIDE_PX, SIDE_PX, dtype=torch.bool)
    valid[:, :, SIDE_PX - step - place :] = False
    return Batch(images + place, (images > 0.5).to(torch.uint8), valid)


def network(options: dict[str, Any], dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Dropout(dropout),
        nn.Conv2d(4, 1, 1),
    ).double()
    example = torch.zeros(2, 1, SIDE_PX, SIDE_PX, dtype=torch.float64)
    model, _ = convert_batchnorm(plain, example, **options)
    return model


def train(
    options: dict[str, Any], shares: dict[int, tuple[int, ...]], ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Train on this rank's batches of each step; alone, on those of all ranks."""
    model = network(options)
    learner = Learner(model, CrossEntropy(), torch.device("cpu"), torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses, norms = [], []
    for step in range(STEPS):
        result = take_step(
            learner,
            part_of_step(step, shares, ranks),
            optimizer,
            max_gradient_norm=0.5,
            step=step + 1,
            ranks=ranks,
        )
        losses.append(result.loss)
        norms.append(result.gradient_norm)
    return {"losses": losses, "norms": norms, "state": model.state_dict()}


def part_of_step(step: int, shares: dict[int, tuple[int, ...]], ranks: Ranks) -> list[Batch]:
    """This rank's batches of a step; alone, those of all ranks."""
    batches, place = [], 0
    for rank in range(RANKS):
        for _ in range(shares[rank][step]):
            if ranks.count == 1 or ranks.rank == rank:
                batches.append(batch(step, place))
            place += 1
    return batches


def train_detector(ranks: Ranks = ALONE) -> list[float]:
    """Train a detector on a frame a rank and step, with one box, two or none."""
    detection = DetectionSpec(pyramid_channels=32).settle("retinanet", [(12, 12)])
    spec = ModelSpec(architecture="retinanet", encoder="mobilenet_v3_small", detection=detection)
    torch.manual_seed(0)
    model = build_detector(spec, class_count=1, in_channels=1)
    example = torch.zeros(2, 1, 64, 64)
    convert_batchnorm(model.get_submodule("backbone"), example, kind="gn")
    learner = Learner(model, DetectorLoss(), torch.device("cpu"), torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        mine = [place for place in range(RANKS) if ranks.count == 1 or place == ranks.rank]
        frames = [boxed_frame(step + place) for place in mine]
        result = take_step(
            learner, frames, optimizer, max_gradient_norm=1.0, step=step + 1, ranks=ranks
        )
        losses.append(result.loss)
    return losses


def boxed_frame(number: int) -> DetectionBatch:
    generator = torch.Generator().manual_seed(number)
    image = torch.randn(1, 64, 64, generator=generator)
    corners = torch.tensor([[8.0, 8.0, 20.0, 20.0], [30.0, 30.0, 44.0, 42.0]])[: number % 3]
    labels = torch.zeros(len(corners), dtype=torch.int64)
    return DetectionBatch((image,), (corners,), (labels,), padding_px=0)


def checkpoint_and_resume(ranks: Ranks, folder: str) -> dict[str, Any]:
    """Train with windows and dropout, put another network to a checkpoint, and go on with both."""
    path = Path(folder) / "checkpoint.pt"
    torch.manual_seed(ranks.rank)
    states = []
    trained = fresh()
    for step in range(2):
        take(trained, step, ranks)
    content = checkpoint_content(LoopState(step=2), trained, ranks)
    if ranks.is_first:
        torch.save(content, path)
    dist.barrier()
    for resumed in (trained, fresh()):
        state = restore_checkpoint(torch.load(path, weights_only=True), resumed, ranks)
        assert state.step == 2
        for step in range(2, STEPS):
            take(resumed, step, ranks)
        states.append({name: t.clone() for name, t in resumed.network.state_dict().items()})
    disagreement = ""
    if ranks.rank == 1:
        next(trained.network.parameters()).data.add_(1e-6)
    try:
        checkpoint_content(LoopState(step=4), trained, ranks)
    except RanksDisagreeError as error:
        disagreement = error.code
    return {"states": states, "disagreement": disagreement, "content": content}


def fresh() -> Trained:
    model = network(KINDS["separate windows"], dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trained(model, optimizer, None, torch.device("cpu"))


def take(trained: Trained, step: int, ranks: Ranks) -> None:
    learner = Learner(trained.network, CrossEntropy(), trained.device, torch.float32)
    take_step(
        learner,
        part_of_step(step, EVEN_SHARES, ranks),
        trained.optimizer,
        max_gradient_norm=0.5,
        step=step + 1,
        ranks=ranks,
    )


def fail_on_the_second(ranks: Ranks) -> dict[str, Any]:
    """Run out of memory on the second rank, try the step again, then meet an infinity there."""
    model = network(KINDS["separate windows"])
    loss = RunsOutOnce() if ranks.rank == 1 else CrossEntropy()
    learner = Learner(model, loss, torch.device("cpu"), torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = [batch(0, 2 * ranks.rank), batch(0, 2 * ranks.rank + 1)]
    raised: list[str] = []

    def step(batches: list[Batch]) -> None:
        take_step(
            learner,
            batches,
            optimizer,
            max_gradient_norm=0.5,
            step=1,
            undoable=True,
            ranks=ranks,
        )

    try:
        step(batches)
    except torch.OutOfMemoryError as error:
        raised.append(str(error))
    step(batches)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if ranks.rank == 1:
        batches[0].images.fill_(torch.inf)
    try:
        step(batches)
    except DivergedError as error:
        raised.append(error.code)
    unmoved = all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    return {"raised": raised, "state": state, "unmoved": unmoved}


def be_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    results: dict[str, Any] = {}
    for name, options in KINDS.items():
        lockstep = options.get("ranks") == "pooled"
        shares = EVEN_SHARES if lockstep else SHARES
        results[name] = train(options, shares, Ranks(rank, RANKS, lockstep))
    results["detector"] = train_detector(Ranks(rank, RANKS))
    results["resumed"] = checkpoint_and_resume(Ranks(rank, RANKS), folder)
    results["failing"] = fail_on_the_second(Ranks(rank, RANKS))
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw and holds."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=be_rank, args=(rank, str(folder))) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("kind", ["gn", "frozen", "bn"])
def test_two_processes_train_as_one_that_accumulates_their_batches(
    both: list[dict[str, Any]], kind: str
) -> None:
    alone = train(KINDS[kind], SHARES)
    for rank in both:
        assert rank[kind]["losses"] == pytest.approx(alone["losses"], rel=1e-12)
        assert rank[kind]["norms"] == pytest.approx(alone["norms"], rel=1e-10)
        # Running statistics among them, which only the first and last batches of a step tell apart.
        for name, value in alone["state"].items():
            torch.testing.assert_close(rank[kind]["state"][name], value, rtol=1e-10, atol=1e-12)


def test_two_processes_train_a_detector_as_one_that_accumulates(both: list[dict[str, Any]]) -> None:
    alone = train_detector()
    assert len(set(alone)) == STEPS
    for rank in both:
        assert rank["detector"] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_ranks_hold_the_same_weights_and_running_statistics_bit_for_bit(
    both: list[dict[str, Any]], kind: str
) -> None:
    first, second = (rank[kind]["state"] for rank in both)
    start = network(KINDS[kind]).state_dict()
    assert not torch.equal(first["0.weight"], start["0.weight"])
    for name, value in first.items():
        if "window" not in name:
            assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("kind", ["separate windows", "pooled windows"])
def test_a_window_holds_the_frames_of_its_own_rank(both: list[dict[str, Any]], kind: str) -> None:
    first, second = (rank[kind]["state"] for rank in both)
    assert not torch.equal(first["1.window.means"], second["1.window.means"])


def test_pooled_windows_normalize_by_the_frames_of_all_ranks(both: list[dict[str, Any]]) -> None:
    # Before anything is remembered, by both frames of the step as one batch.
    model = network(KINDS["pooled windows"])
    together = torch.cat([batch(0, 0).images, batch(0, 1).images])
    logits = model(together)
    losses = [
        CrossEntropy()(logits[place : place + 1], batch(0, place).targets, batch(0, place).valid)
        for place in range(2)
    ]
    weights = [int(batch(0, place).valid.sum()) for place in range(2)]
    mean = sum(w * float(part.detach()) for w, part in zip(weights, losses, strict=True)) / sum(
        weights
    )
    assert both[0]["pooled windows"]["losses"][0] == pytest.approx(mean, rel=1e-12)
    assert both[0]["separate windows"]["losses"][0] != pytest.approx(mean, rel=1e-6)


def test_each_rank_resumes_its_own_window_and_random_state_bit_for_bit(
    both: list[dict[str, Any]],
) -> None:
    for rank in both:
        went_on, resumed = rank["resumed"]["states"]
        for name, value in went_on.items():
            assert torch.equal(value, resumed[name]), name
    first, second = (rank["resumed"]["states"][0] for rank in both)
    assert not torch.equal(first["1.window.means"], second["1.window.means"])


def test_weights_that_differ_between_ranks_are_no_checkpoint(both: list[dict[str, Any]]) -> None:
    assert [rank["resumed"]["disagreement"] for rank in both] == ["ranks_disagree", ""]


def test_a_checkpoint_of_another_number_of_processes_is_refused(both: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError) as caught:
        restore_checkpoint(both[0]["resumed"]["content"], fresh(), ALONE)
    assert caught.value.code == "checkpoint_of_other_devices"


def test_memory_that_ends_on_one_rank_fails_the_step_on_all_and_it_can_be_tried_again(
    both: list[dict[str, Any]],
) -> None:
    first, second = (rank["failing"] for rank in both)
    assert first["raised"][0] == "the device of another rank ran out of memory"
    assert second["raised"][0] == "no memory left"
    untroubled = network(KINDS["separate windows"])
    learner = Learner(untroubled, CrossEntropy(), torch.device("cpu"), torch.float32)
    optimizer = torch.optim.SGD(untroubled.parameters(), lr=0.05, momentum=0.9)
    take_step(
        learner,
        [batch(0, place) for place in range(4)],
        optimizer,
        max_gradient_norm=0.5,
        step=1,
    )
    tracked = "1.num_batches_tracked"
    assert first["state"][tracked] == untroubled.state_dict()[tracked] == 4
    assert torch.equal(first["state"]["0.weight"], second["state"]["0.weight"])


def test_a_number_that_is_none_on_one_rank_stops_all_before_a_weight_moves(
    both: list[dict[str, Any]],
) -> None:
    for rank in both:
        assert rank["failing"]["raised"][1] == "loss_not_finite"
        assert rank["failing"]["unmoved"]
