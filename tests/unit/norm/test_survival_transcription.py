"""What a run with cross-iteration batch normalization must survive, and how a transcription fails.

The second half of the list that begins in `test_survival.py`: forward passes that are recomputed,
accumulated or made without gradients, and runs that are interrupted, resumed and distributed.
"""

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointError, checkpoint

from benchmarks.norm.transcription import PlainCrossIterationBatchNorm2d, transcribe
from norm import CrossIterationBatchNorm2d, convert_batchnorm, plain_state_dict

EXAMPLE = torch.zeros(2, 2, 8, 8)
HISTORIES = ["ring", "exponential"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.BatchNorm2d(4),
    )


def with_cbn(**options: Any) -> nn.Module:
    model, report = convert_batchnorm(network(), EXAMPLE, kind="cbn", **options)
    assert not report.left
    return model


def with_transcription(**options: Any) -> nn.Module:
    model, report = transcribe(network(), EXAMPLE, eps_inside_root=True, **options)
    assert not report.left
    return model


def transcriptions(model: nn.Module) -> list[PlainCrossIterationBatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, PlainCrossIterationBatchNorm2d)]


def cbn_layers(model: nn.Module) -> list[CrossIterationBatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, CrossIterationBatchNorm2d)]


def random_frame(seed: int, images: int = 1) -> Tensor:
    return torch.randn(images, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0
) -> list[Tensor]:
    """Run steps on frames that depend on the step's number alone; return outputs, gradients."""
    seen: list[Tensor] = []
    for step in range(first, first + steps):
        output = model(random_frame(step))
        optimizer.zero_grad()
        output.square().mean().backward()
        seen.append(output.detach())
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
    return seen


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    assert state.keys() == before.keys()
    return all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_no_number(reentrant: bool, history: str) -> None:
    """The transcription normalizes otherwise, and takes each frame in at least twice.

    Reentrant, the first pass runs without gradients and is plain batch normalization, but moves the
    running statistics. Otherwise the derivative inside the forward pass sets off recomputations
    of its own; checkpointing raises while the window grows, and then the window holds one
    frame several times.
    """
    ours = with_cbn(window_size=3, history=history)
    theirs = with_transcription(window_size=3)
    ours_twin, theirs_twin = copy.deepcopy(ours), copy.deepcopy(theirs)
    if not reentrant:
        with pytest.raises(CheckpointError, match="different metadata"):
            checkpoint(copy.deepcopy(theirs), random_frame(0), use_reentrant=False).sum().backward()
    for model in (theirs, theirs_twin):
        train(model, optimizer_of(model), 2)
    for model, twin in ((ours, ours_twin), (theirs, theirs_twin)):
        for seed in range(3):
            x, same = (random_frame(seed).requires_grad_() for _ in range(2))
            output, recomputed = model(x), checkpoint(twin, same, use_reentrant=reentrant)
            output.pow(3).sum().backward()
            recomputed.pow(3).sum().backward()
            if model is ours:
                assert torch.equal(recomputed, output)
                assert x.grad is not None
                assert same.grad is not None
                assert torch.equal(same.grad, x.grad)
    assert same_state(ours_twin, ours.state_dict())
    assert (recomputed - output).abs().max() > 0.1
    for layer in transcriptions(theirs):
        assert not torch.equal(*layer.past_means)
    assert all(layer.passes >= 2 + 2 * 3 for layer in transcriptions(theirs_twin))
    # Later layers see another input in each recomputation, because the first one's output moves.
    assert torch.equal(*transcriptions(theirs_twin)[0].past_means) is not reentrant


def test_accumulated_micro_batches_pool_as_the_whole_batch_and_burn_in_counts_steps() -> None:
    """The transcription pools as well, but its burn-in of two passes ends in the first step."""
    block = network()[:2].double()
    options = {"d_max": float("inf"), "r_max": float("inf"), "window_size": 4}
    pooling, _ = convert_batchnorm(copy.deepcopy(block), EXAMPLE.double(), kind="cbn", **options)
    ours, _ = convert_batchnorm(
        copy.deepcopy(block), EXAMPLE.double(), kind="cbn", burn_in_steps=2, **options
    )
    theirs, _ = transcribe(block, EXAMPLE.double(), window_size=4, burn_in_passes=2)
    optimizers = [torch.optim.SGD(model.parameters(), 0.05) for model in (pooling, ours, theirs)]
    burning_in, remembered = [], []
    for step in range(3):
        frames = random_frame(step, 4).double()
        for index in range(4):
            frame = frames[index : index + 1]
            outputs = [model(frame) for model in (pooling, ours, theirs)]
            torch.autograd.backward(torch.stack(outputs).square().sum())
            layer = ours.get_submodule("1")
            y = ours.get_submodule("0")(frame)
            alone = F.batch_norm(y, None, None, layer.weight, layer.bias, training=True)  # type: ignore[arg-type]  # Parameters.
            burning_in.append(torch.allclose(outputs[1], alone, rtol=1e-10, atol=1e-10))
            remembered += [len(layer.past_means) for layer in transcriptions(theirs)]
        if step == 0:
            whole = F.batch_norm(pooling.get_submodule("0")(frames), None, None, training=True)
            # float64 on both sides; the margin is some thousand roundings.
            torch.testing.assert_close(outputs[0], whole[-1:], rtol=1e-10, atol=1e-10)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert burning_in == [True] * 8 + [False] * 4
    assert remembered[:6] == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("history", HISTORIES)
def test_a_training_pass_without_gradients_moves_the_same_statistics(history: str) -> None:
    """The transcription then normalizes by the batch alone and does not remember it, silently."""
    ours = with_cbn(window_size=3, history=history)
    theirs = with_transcription(window_size=3)
    differences = []
    for model in (ours, theirs):
        train(model, optimizer_of(model), 3)
        twin, x = copy.deepcopy(model), random_frame(9)
        expected = model(x)
        with torch.no_grad():
            differences.append(float((twin(x) - expected).abs().max()))
        if model is ours:
            assert same_state(twin, model.state_dict())
    assert differences[0] == 0
    assert differences[1] > 0.1
    for layer, quiet in zip(transcriptions(theirs), transcriptions(twin), strict=True):
        assert torch.equal(layer.past_means[1], quiet.past_means[0])


@pytest.mark.parametrize("history", HISTORIES)
def test_eval_mode_is_batch_normalization_and_changes_nothing(history: str) -> None:
    """The transcription survives this."""
    ours = with_cbn(window_size=3, burn_in_steps=1, history=history)
    train(ours, optimizer_of(ours), 4)
    plain = network()
    plain.load_state_dict(plain_state_dict(ours))
    before = copy.deepcopy(ours.state_dict())
    for x in (random_frame(9), random_frame(8, 2)):
        assert torch.equal(ours.eval()(x), plain.eval()(x))
        with torch.no_grad():
            ours(x)
    assert same_state(ours, before)


Interruption = Callable[[nn.Module, torch.optim.Optimizer], nn.Module]


def through_a_file(model: nn.Module, _: torch.optim.Optimizer) -> nn.Module:
    """Save the state and load it into a model that has just been built."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    layers = cbn_layers(model)
    if layers:
        options = {"window_size": 4, "burn_in_steps": 2, "history": layers[0].history}
        resumed = with_cbn(**options)
    else:
        resumed = with_transcription(window_size=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    return resumed


def by_deep_copy(model: nn.Module, _: torch.optim.Optimizer) -> nn.Module:
    return copy.deepcopy(model)


def by_moving_it(model: nn.Module, _: torch.optim.Optimizer) -> nn.Module:
    """Cast a copy to float64, which holds every float32 number, and back."""
    return copy.deepcopy(model).to(torch.float64).to("cpu", torch.float32)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("interrupt", [through_a_file, by_deep_copy, by_moving_it])
def test_a_run_interrupted_within_a_window_goes_on_bit_for_bit(
    interrupt: Interruption, history: str
) -> None:
    """The transcription loses its window with a checkpoint.

    A deep copy takes it along; `.to()` leaves it behind, which `test_survival.py` shows, since the
    way there and back shows nothing.
    """
    ours = with_cbn(window_size=4, burn_in_steps=2, history=history)
    theirs = with_transcription(window_size=4)
    same = []
    for model in (ours, theirs):
        optimizer = optimizer_of(model)
        # A ring of three entries is then in the middle of its second round.
        train(model, optimizer, 5)
        resumed = interrupt(model, optimizer)
        resumed_optimizer = optimizer_of(resumed)
        resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        expected = train(model, optimizer, 5, first=5)
        continued = train(resumed, resumed_optimizer, 5, first=5)
        assert len(continued) == len(expected)
        same.append(all(map(torch.equal, continued, expected)))
        assert same_state(resumed, model.state_dict()) is same[-1]
        if interrupt is through_a_file and model is theirs:
            # Not a rounding: the first frame is normalized by another window.
            assert (continued[0] - expected[0]).abs().max() > 0.1
    assert same == [True, interrupt is not through_a_file]


def test_a_checkpoint_loads_into_the_names_of_plain_batch_normalization_and_back() -> None:
    """The transcription's loads, but a plain checkpoint holds a counter that it lacks."""
    ours, theirs = with_cbn(window_size=3), with_transcription(window_size=3)
    for model in (ours, theirs):
        train(model, optimizer_of(model), 3)
    plain = network()
    plain.load_state_dict(plain_state_dict(ours), strict=True)
    x = random_frame(9)
    assert torch.equal(plain.eval()(x), ours.eval()(x))
    other = with_cbn(window_size=3)
    train(other, optimizer_of(other), 1)
    other.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), ours(x))
    for layer in cbn_layers(other):
        assert layer.window is not None
        assert layer.window.filled == 0
    with pytest.raises(RuntimeError, match=r"Unexpected key.*num_batches_tracked"):
        theirs.load_state_dict(plain.state_dict(), strict=True)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    meeting = f"file://{tmp_path / 'ranks'}"
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("ranks", ["separate", "pooled"])
def test_wrapping_for_distributed_training_changes_nothing_in_one_process(ranks: str) -> None:
    """What two processes do under either policy is in `test_ranks.py`.

    The transcription runs in one process too; it has no policy, and each rank's list of its own.
    """
    ours = with_cbn(window_size=3, ranks=ranks)
    twin = copy.deepcopy(ours)
    wrapped = DistributedDataParallel(twin)
    expected = train(ours, optimizer_of(ours), 5)
    assert all(map(torch.equal, train(wrapped, optimizer_of(twin), 5), expected))
    assert same_state(twin, ours.state_dict())
