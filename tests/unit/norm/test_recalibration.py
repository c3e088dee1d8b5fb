"""`recalibrate` gives every layer the statistics of all the data, however it is split."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import RecalibrationError, RecalibrationReport, convert_batchnorm, recalibrate
from norm.conversion import Kind

# Sums over a few hundred values in float64, through a few layers of a network.
EXACT = 1e-11


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def split(frames: Tensor, sizes: int | list[int]) -> list[Tensor]:
    return list(torch.split(frames, sizes))


def frames(count: int, *, side_px: int = 6) -> Tensor:
    """Return frames of very different brightness and contrast, so that batches differ."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, 2, side_px, side_px, dtype=torch.float64, generator=generator)
    level = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1)
    return noise * (1 + level) + level


class Network(nn.Module):
    """A stem, a residual block and a normalization of the pooled maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
        self.head = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.second(self.first(x))).relu()
        output: Tensor = self.head(x.mean((2, 3)))
        return output


def network(model: nn.Module | None = None) -> nn.Module:
    """Return a float64 model whose parameters and running statistics are no initial ones."""
    torch.manual_seed(0)
    model = Network() if model is None else model
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double()


def running(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: state[name].clone() for name in state if "running" in name}


def inputs_in_eval_mode(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return all that each normalization gets to see, (C, positions)."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(
                args[0].movedim(1, 0).flatten(1)
            )
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    with torch.no_grad():
        for batch in batches:
            copy.deepcopy(model).eval()(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts, dim=1) for name, parts in seen.items()}


def assert_exact(model: nn.Module, batches: list[Tensor], tolerance: float = EXACT) -> None:
    found = inputs_in_eval_mode(model, batches)
    assert found
    for name, values in found.items():
        state = model.get_submodule(name).state_dict()
        expected = values.to(state["running_mean"].dtype)
        close(state["running_mean"], expected.mean(1), tolerance)
        close(state["running_var"], expected.var(1, correction=0), tolerance)


def test_one_layer_gets_the_mean_and_population_variance_of_all_values() -> None:
    layer = nn.BatchNorm2d(2).double()
    sizes = [(1, 3, 4), (3, 2, 2), (2, 5, 1)]
    batches = [torch.randn(n, 2, h, w, dtype=torch.float64) + n for n, h, w in sizes]
    report = recalibrate(layer, batches)
    values = torch.cat([batch.movedim(1, 0).flatten(1) for batch in batches], dim=1)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    close(layer.running_mean, values.mean(1))
    close(layer.running_var, values.var(1, correction=0))
    assert report.recalibrated[0].positions == 12 + 12 + 10
    assert report.frames == 6
    assert (report.passes, report.converged, report.last_change) == (2, True, 0)


def test_every_layer_holds_the_moments_of_its_input_in_eval_mode() -> None:
    model = network()
    batches = [*split(frames(5), 2), frames(1, side_px=9), frames(3, side_px=4)]
    report = recalibrate(model, batches)
    assert_exact(model, batches)
    assert report.converged
    names = [layer.name for layer in report.recalibrated]
    assert names == ["stem.1", "first.1", "second.1", "head"]
    # Each layer after the first takes a pass, and one more confirms.
    assert report.passes == 5
    assert all(layer.change > 0.1 for layer in report.recalibrated)


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [4, 4, 1], [1, 7, 1]])
def test_splitting_the_data_into_other_batches_changes_nothing(sizes: list[int]) -> None:
    expected, model = network(), network()
    recalibrate(expected, split(frames(9), 3))
    recalibrate(model, split(frames(9), sizes))
    for name, value in running(model).items():
        close(value, running(expected)[name])


@pytest.mark.parametrize("wrong", [0.0, 1e-12, 1e12, math.nan, math.inf])
def test_the_statistics_before_do_not_matter(wrong: float) -> None:
    expected, model = network(), network()
    batches = split(frames(9), 4)
    recalibrate(expected, batches)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.fill_(wrong)
    assert recalibrate(model, batches).converged
    for name, value in running(model).items():
        close(value, running(expected)[name])


def test_a_small_error_in_every_one_of_thirty_layers_does_not_grow() -> None:
    blocks = [
        part for _ in range(30) for part in (nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    ]
    model = network(nn.Sequential(*blocks))
    batches = split(frames(6), 2)
    recalibrate(model, batches)
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.mul_(1.2)
    report = recalibrate(model, batches)
    assert report.converged
    assert report.passes == 31
    # Rounding is amplified from layer to layer.
    assert_exact(model, batches, tolerance=1e-8)


def test_a_model_that_is_right_already_takes_one_pass_and_stays_the_same() -> None:
    model, batches = network(), split(frames(5), 2)
    recalibrate(model, batches)
    before = running(model)
    report = recalibrate(model, batches, tolerance=0)
    assert report.passes == 1
    assert all(torch.equal(value, before[name]) for name, value in running(model).items())


@pytest.mark.parametrize("kind", ["cbn", "brn", "frozen"])
def test_converted_layers_are_recalibrated_and_keep_their_history(kind: Kind) -> None:
    options = {"cbn": {"window_size": 3, "burn_in_steps": 1}, "brn": {"total_steps": 10}}
    batches = split(frames(5), 2)
    model = network(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    model, _ = convert_batchnorm(model, batches[0], kind=kind, **options.get(kind, {}))
    for batch in batches[:2]:
        model(batch).sum().backward()
    before = copy.deepcopy(model.state_dict())
    recalibrate(model, batches)
    assert_exact(model, batches)
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1.running_mean", "1.running_var"}
    model(batches[0]).sum().backward()


def test_a_fused_normalization_and_activation_of_timm_is_recalibrated() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    model = network(nn.Sequential(nn.Conv2d(2, 4, 3), timm_layers.BatchNormAct2d(4)))
    batches = split(frames(5), 2)
    assert recalibrate(model, batches).converged
    assert_exact(model, batches)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(2), (3, 2)),
        (nn.BatchNorm1d(2), (3, 2, 5)),
        (nn.BatchNorm3d(2), (3, 2, 2, 3, 4)),
        (nn.SyncBatchNorm(2), (3, 2, 4, 4)),
    ],
)
def test_other_batch_normalizations_of_torch_are_recalibrated(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(layer).double()
    batches = [torch.randn(shape, dtype=torch.float64) + shift for shift in (0, 5)]
    recalibrate(model, batches)
    assert_exact(model, batches)


def test_a_tuple_is_passed_as_positional_arguments() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            output: Tensor = self.norm(x * factor)
            return output

    model, factor = Weighted().double(), torch.tensor(3.0)
    recalibrate(model, [(x, factor) for x in split(frames(4), 2)])
    assert_exact(nn.Sequential(model.norm), [frames(4) * factor])


def test_arguments_that_the_model_does_not_take_are_explained() -> None:
    with pytest.raises(TypeError) as raised:
        recalibrate(network(), [(frames(2), torch.zeros(2))])
    assert "give `forward`" in raised.value.__notes__[0]


def test_nested_batches_reach_forward() -> None:
    model, expected = network(), network()
    batches = [{"views": [x], "label": "scratch"} for x in split(frames(4), 2)]
    recalibrate(model, batches, forward=lambda model, batch: model(batch["views"][0]))
    recalibrate(expected, split(frames(4), 2))
    assert all(
        torch.equal(value, running(expected)[name]) for name, value in running(model).items()
    )


def test_a_layer_that_runs_twice_gets_the_moments_of_both_inputs() -> None:
    class Head(nn.Module):
        """One head for two levels of a pyramid."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)
            self.after = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            small = nn.functional.avg_pool2d(x, 2)
            maps = [self.after(self.norm(level).relu()) for level in (x, small)]
            return torch.cat([level.flatten() for level in maps])

    model, batches = network(Head()), split(frames(5), 2)
    report = recalibrate(model, batches)
    assert (report.passes, report.converged) == (3, True)
    assert_exact(model, batches)


class Recurrent(nn.Module):
    """Its normalization's second input depends on its first output."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(x + 0.3 * self.norm(x).relu())
        return output


def test_a_layer_that_feeds_itself_takes_several_sweeps_and_the_report_tells() -> None:
    model, batches = network(Recurrent()), split(frames(5), 2)
    first = recalibrate(model, batches, max_sweeps=1, tolerance=1e-12)
    assert not first.converged
    assert first.last_change > 1e-12
    report = recalibrate(model, batches, max_sweeps=100, tolerance=1e-12)
    assert report.converged
    assert_exact(model, batches)


class Assorted(nn.Module):
    """What is recalibrated, and what is not."""

    def __init__(self) -> None:
        super().__init__()
        torchvision_ops = pytest.importorskip("torchvision.ops")

        class Custom(nn.BatchNorm2d):
            def forward(self, y: Tensor) -> Tensor:
                return super().forward(2 * y)

        self.norm = nn.BatchNorm2d(2)
        self.frozen = torchvision_ops.FrozenBatchNorm2d(2)
        self.instance = nn.InstanceNorm2d(2, track_running_stats=True)
        self.group = nn.GroupNorm(1, 2)
        self.custom = Custom(2)
        self.untracked = nn.BatchNorm2d(2, track_running_stats=False)
        self.idle = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.instance(self.frozen(self.norm(x))))
        output: Tensor = self.untracked(self.custom(x))
        return output


def test_layers_that_are_left_are_named_with_the_reason() -> None:
    model = Assorted().double()
    before = running(model)
    report = recalibrate(model, split(frames(4), 2))
    assert [layer.name for layer in report.recalibrated] == ["norm"]
    reasons = {layer.name: layer.reason for layer in report.left}
    assert list(reasons) == ["frozen", "instance", "custom", "untracked", "idle"]
    assert "frozen already" in reasons["frozen"]
    assert "each image by itself" in reasons["instance"]
    assert reasons["custom"] == "Custom has a forward pass of its own"
    assert "tracks no running statistics" in reasons["untracked"]
    assert reasons["idle"] == "it did not run"
    after = running(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"norm.running_mean", "norm.running_var"}
    assert json.loads(json.dumps(report.as_dict()))["left"][0]["name"] == "frozen"


def test_a_model_without_batch_normalization_is_not_run() -> None:
    report = recalibrate(nn.GroupNorm(1, 2), [])
    assert report == RecalibrationReport((), (), 0, 0.0, converged=True, frames=0)


def test_a_model_whose_normalizations_never_run_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).double()
    with pytest.raises(RecalibrationError, match=r"none .* ran"):
        recalibrate(model, [frames(2)], forward=lambda *_: None)


def test_progress_counts_to_the_passes_that_were_needed() -> None:
    calls: list[tuple[int, int]] = []
    report = recalibrate(network(), [frames(4)], progress=lambda *call: calls.append(call))
    assert calls == [(done, 5) for done in range(1, 6)]
    assert report.passes == 5


def test_a_compiled_model_is_recalibrated() -> None:
    model, expected = network(), network()
    batches = split(frames(4), 2)
    compiled: Any = torch.compile(model, backend="eager")
    compiled.eval()
    with torch.no_grad():
        compiled(batches[0])
    report = recalibrate(compiled, batches)
    recalibrate(expected, batches)
    assert len(report.recalibrated) == 4
    assert all(
        torch.equal(value, running(expected)[name]) for name, value in running(model).items()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_statistics_keep_the_type_of_the_model(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    report = recalibrate(model, split(frames(4).to(dtype), 2))
    assert report.converged
    assert {value.dtype for value in running(model).values()} == {dtype}


def test_statistics_under_autocast_are_those_of_the_rounded_activations() -> None:
    model = network().float()
    batches = split(frames(4).float(), 2)

    def in_bfloat16(model: nn.Module, batch: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            model(batch)

    assert recalibrate(model, batches, forward=in_bfloat16).converged
    # bfloat16 keeps eight bits, which is 0.4 % of a value, and values reach a few deviations.
    assert_exact(model, batches, tolerance=0.05)


def test_a_model_in_eval_mode_normalizes_the_data_exactly_afterwards() -> None:
    # torch 2.11 refuses an eps of 0.
    layer = nn.BatchNorm2d(4, affine=False, eps=1e-15)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), layer).double()
    recalibrate(model, split(frames(5), 2))
    with torch.no_grad():
        variance, mean = torch.var_mean(model.eval()(frames(5)), (0, 2, 3), correction=0)
    close(mean, torch.zeros_like(mean))
    close(variance, torch.ones_like(variance))
