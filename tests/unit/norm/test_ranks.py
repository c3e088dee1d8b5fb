"""Two real processes over gloo: windows of each rank's own, and windows pooled over ranks."""

import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from norm import (
    CrossIterationBatchNorm2d,
    FrozenBatchNorm2d,
    OptionError,
    RankStatistics,
    convert_batchnorm,
)
from norm.functional import BatchStatistics, WindowEstimates
from norm.ranks import gather_over_ranks

RANKS = 2
ITERATIONS = 5
WHOLE_WINDOW: dict[str, Any] = {"d_max": math.inf, "r_max": math.inf}


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).double()
    model, report = convert_batchnorm(
        plain, torch.zeros(1, 2, 8, 8, dtype=torch.float64), kind="cbn", **options
    )
    assert not report.left
    return model


def frame(rank: int, iteration: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * iteration + rank)
    return rank + torch.randn(1, 2, 8, 8, generator=generator, dtype=torch.float64)


SCENARIOS: dict[str, tuple[dict[str, Any], float]] = {
    # With a rate of zero the weights stand still, and pooling is exact.
    "pooled, still": ({"window_size": 3, "ranks": "pooled", **WHOLE_WINDOW}, 0.0),
    "pooled ring": ({"window_size": 3, "ranks": "pooled", "gradient": "paper"}, 0.01),
    "pooled average": ({"window_size": 3, "ranks": "pooled", "history": "exponential"}, 0.01),
    "separate, still": ({"window_size": 3, **WHOLE_WINDOW}, 0.0),
    "separate": ({"window_size": 3}, 0.01),
}


def train_all(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    results = {name: train(rank, *scenario) for name, scenario in SCENARIOS.items()}
    results["merged"] = {"state": run_and_merge(merged_network(), PASSES[rank], merge=True)}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def train(rank: int, options: dict[str, Any], rate: float) -> dict[str, Any]:
    model = network(**options)
    # Buffers are broadcast by default: what this room must withstand.
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    outputs = []
    for iteration in range(ITERATIONS):
        output = wrapped(frame(rank, iteration))
        outputs.append(output.detach().clone())
        optimizer.zero_grad()
        output.pow(3).mean().backward()
        optimizer.step()
    return {"outputs": outputs, "state": model.state_dict()}


# Which frames each rank runs between two merges; the second rank has none at last.
PASSES = {0: ((0, 1), (2,), (3,)), 1: ((10,), (11, 12, 13), ())}


def merged_network() -> nn.Module:
    """Plain, at another rate, frozen, and without running statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2, momentum=0.02),
        FrozenBatchNorm2d(2),
        nn.BatchNorm2d(2, track_running_stats=False),
    ).double()
    model[2].running_mean.fill_(0.5)  # type: ignore[operator]
    return model


def run_and_merge(
    model: nn.Module, passes: tuple[tuple[int, ...], ...], *, merge: bool
) -> dict[str, Tensor]:
    for places in passes:
        statistics = RankStatistics.of(model)
        for place in places:
            model(frame(0, place))
        if merge:
            statistics.merge()
    return model.state_dict()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw and holds, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=train_all, args=(rank, str(folder))) for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_pooled_ranks_are_one_process_with_all_their_frames(ranks: list[dict[str, Any]]) -> None:
    results = [rank["pooled, still"] for rank in ranks]
    whole = network(window_size=3, **WHOLE_WINDOW)
    for iteration in range(ITERATIONS):
        batch = torch.cat([frame(rank, iteration) for rank in range(RANKS)])
        outputs = torch.cat([result["outputs"][iteration] for result in results])
        torch.testing.assert_close(outputs, whole(batch), rtol=1e-10, atol=1e-10)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(results[0]["state"][name], whole.state_dict()[name])


@pytest.mark.parametrize("scenario", ["pooled ring", "pooled average"])
def test_pooled_ranks_normalize_alike_while_they_train(
    ranks: list[dict[str, Any]], scenario: str
) -> None:
    first, second = (rank[scenario]["state"] for rank in ranks)
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
        assert torch.equal(first[name], second[name]), name
    own = [name for name in first if name.startswith("1.window.mean")]
    assert own
    for name in own:
        assert not torch.equal(first[name], second[name]), "a window holds its rank's own frames"


def test_separate_ranks_keep_their_own_windows(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        result = rank["separate, still"]
        alone = network(window_size=3, **WHOLE_WINDOW)
        for iteration in range(ITERATIONS):
            expected = alone(frame(number, iteration))
            torch.testing.assert_close(result["outputs"][iteration], expected)
        for name, value in alone.state_dict().items():
            if name.startswith("1.window."):
                torch.testing.assert_close(result["state"][name], value)


def test_the_weights_stay_equal_when_ranks_are_separate(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["separate"]["state"] for rank in ranks)
    assert not torch.equal(first["0.weight"], network().state_dict()["0.weight"])
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert torch.equal(first[name], second[name])


def test_merged_running_statistics_are_those_of_one_process_that_ran_all_batches(
    ranks: list[dict[str, Any]],
) -> None:
    alone = merged_network()
    between = [rank_0 + rank_1 for rank_0, rank_1 in zip(PASSES[0], PASSES[1], strict=True)]
    expected = run_and_merge(alone, tuple(between), merge=False)
    assert int(expected["0.num_batches_tracked"]) == 8
    for rank in ranks:
        for name, value in expected.items():
            torch.testing.assert_close(rank["merged"]["state"][name], value, rtol=1e-12, atol=0)
    for name, value in ranks[0]["merged"]["state"].items():
        assert torch.equal(value, ranks[1]["merged"]["state"][name]), name


def test_a_cumulative_average_has_no_rate_to_merge_by() -> None:
    with pytest.raises(OptionError, match="momentum"):
        RankStatistics.of(nn.BatchNorm2d(2, momentum=None))


def test_without_a_process_group_pooling_over_ranks_changes_nothing() -> None:
    model, twin = network(window_size=3, ranks="pooled"), network(window_size=3)
    for iteration in range(3):
        assert torch.equal(model(frame(0, iteration)), twin(frame(0, iteration)))
    today = BatchStatistics(torch.zeros(2), torch.ones(2), 4)
    past = WindowEstimates(*(torch.ones(3, 2) for _ in range(3)))
    assert gather_over_ranks(today, past) == (today, past)


def test_distributed_data_parallel_is_told_to_leave_the_windows_alone() -> None:
    model = network(window_size=3)
    layer = model[1]  # type: ignore[index]
    assert isinstance(layer, CrossIterationBatchNorm2d)
    ignored = set(model._ddp_params_and_buffers_to_ignore)  # type: ignore[arg-type]
    windows = {name for name, _ in model.named_buffers() if ".window." in name}
    assert windows
    assert windows <= ignored
