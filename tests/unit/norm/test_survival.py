"""What cross-iteration batch normalization must survive, and what becomes of a plain transcription.

Every frame and convolution that broke published code is here once, in one order, with the product's
layer and with `benchmarks.norm.transcription` side by side. How whole runs are interrupted, resumed
and distributed is in `test_survival_transcription.py`.
"""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from benchmarks.norm.transcription import PlainCrossIterationBatchNorm2d, transcribe
from norm import CrossIterationBatchNorm2d, convert_batchnorm
from norm.window import RingWindow

# Nothing is left out of the pool, so that it can be computed directly.
WHOLE_WINDOW: dict[str, Any] = {"d_max": math.inf, "r_max": math.inf}
# The published code divides by sqrt(variance) + eps unless it is told to do as nn.BatchNorm2d.
AS_BATCH_NORM: dict[str, Any] = {"eps_inside_root": True}


def with_cbn(convolution: nn.Conv2d, **options: Any) -> nn.Sequential:
    """Return a copy of the convolution with the product's layer behind it."""
    twin = copy.deepcopy(convolution)
    layer = CrossIterationBatchNorm2d(twin.out_channels, **options).bind(twin)
    return nn.Sequential(twin, layer.to(twin.weight.dtype))


def with_transcription(convolution: nn.Conv2d, **options: Any) -> nn.Sequential:
    """Return a copy of the convolution with the transcription behind it."""
    twin = copy.deepcopy(convolution)
    return nn.Sequential(twin, PlainCrossIterationBatchNorm2d(twin, **options))


def ring(block: nn.Sequential) -> RingWindow:
    layer = block[1]
    assert isinstance(layer, CrossIterationBatchNorm2d)
    assert isinstance(layer.window, RingWindow)
    return layer.window


def random_frame(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_blank_image_gives_finite_outputs_and_gradients(value: float, padding: int) -> None:
    """The transcription divides zero by zero in its gradient wherever the map is constant.

    Padding gives an image that is not black a border, and with it a variance: there it survives.
    """
    convolution = nn.Conv2d(2, 3, 3, padding=padding, bias=False)
    blocks = [build(convolution, window_size=3) for build in (with_cbn, with_transcription)]
    finite = []
    for block in blocks:
        # Gradients add up over the passes, so that one bad pass shows at the end.
        outputs = [block(torch.full((1, 2, 6, 6), value)) for _ in range(4)]
        torch.autograd.backward(torch.cat(outputs).square().sum())
        assert torch.cat(outputs).isfinite().all()
        gradient = block.get_parameter("0.weight").grad
        assert gradient is not None
        finite.append(bool(gradient.isfinite().all()))
    assert finite == [True, value > 0 and padding > 0]


# torch warns of a variance without degrees of freedom, which is what spoils the transcription.
@pytest.mark.filterwarnings("ignore:var\\(\\)")
def test_a_single_value_a_channel_is_normalized_by_the_window() -> None:
    """The transcription's running variance is not a number from the first such frame on."""
    convolution = nn.Conv2d(2, 3, 1, bias=False).double()
    ours = with_cbn(convolution, window_size=4, **WHOLE_WINDOW)
    theirs = with_transcription(convolution, window_size=4)
    frames = random_frame(0, 4, 2, 1, 1, dtype=torch.float64)
    outputs = [ours(frame[None]) for frame in frames]
    whole = F.batch_norm(convolution(frames), None, None, training=True)
    torch.testing.assert_close(outputs[-1], whole[-1:], rtol=1e-10, atol=1e-10)
    torch.autograd.backward(torch.cat(outputs).square().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    assert ours.eval()(frames).isfinite().all()
    theirs(frames[:1])
    assert theirs.get_buffer("1.running_var").isnan().all()
    assert theirs.eval()(frames).isnan().all()


class SmallResNet(nn.Module):
    """A residual stage and, as in DeepLab, a branch that sees the average of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.main = nn.Sequential(
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.average = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.main(x) + self.shortcut(x)).relu()
        x = x + self.average(x.mean((2, 3), keepdim=True)).relu()
        output: Tensor = self.head(x.mean((2, 3)))
        return output


def train_on_one_image_at_a_time(model: nn.Module, steps: int) -> list[float]:
    """Return the losses of telling frames with a bright stripe from frames without."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for step in range(steps):
        frame, stripe = random_frame(step, 1, 1, 16, 16), step % 2
        frame[..., 7:9] += 4 * stripe
        answer = model(frame)
        loss = F.binary_cross_entropy_with_logits(answer, torch.full_like(answer, stripe))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.filterwarnings("ignore:var\\(\\)")
def test_a_residual_network_trains_on_one_image_at_a_time() -> None:
    """nn.BatchNorm2d refuses the averaged branch; the transcription's weights become no numbers."""
    plain, example = SmallResNet(), torch.zeros(2, 1, 16, 16)
    ours, report = convert_batchnorm(copy.deepcopy(plain), example, kind="cbn")
    theirs, _ = transcribe(copy.deepcopy(plain), example)
    assert len(report.converted) == 5
    losses = train_on_one_image_at_a_time(ours, 100)
    # Guessing costs log 2 = 0.69.
    assert sum(losses[-20:]) / 20 < 0.3
    frames = random_frame(1, 2, 1, 16, 16)
    assert ours.eval()(frames).isfinite().all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        train_on_one_image_at_a_time(plain, 1)
    train_on_one_image_at_a_time(theirs, 2)
    assert theirs.get_parameter("average.0.weight").isnan().any()
    assert theirs.eval()(frames).isnan().all()


class Past:
    """The frames of a window and the convolutions they met, to compute its statistics directly."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution
        self.frames: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x: Tensor) -> None:
        bias = self.convolution.bias
        shift = torch.zeros(self.convolution.out_channels) if bias is None else bias
        self.frames.append((x, self.convolution.weight.detach().clone(), shift.detach().clone()))

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        c = self.convolution
        y = F.conv2d(x, weight, None, c.stride, c.padding, c.dilation, c.groups)
        return y.transpose(0, 1).flatten(1)

    def normalize(self, y: Tensor, *, form: str, todays_bias: bool) -> Tensor:
        """Normalize `y`, the newest frame's, by the Taylor step in the direction the weights took.

        y is linear in the weight, so its change is a convolution with the weight's change, and
        the variance's first-order change is twice the covariance of the two.
        """
        _, weight, bias = self.frames[-1]
        means, variances = [], []
        for x, then, bias_then in self.frames:
            past, change = self.convolve(x, then), self.convolve(x, weight - then)
            shift = change.mean(1)
            covariance = (past * change).mean(1) - past.mean(1) * shift
            variance = past.var(1, correction=0) + 2 * covariance
            if form == "paper":
                variance = variance - shift.square()
            means.append(past.mean(1) + shift + (bias if todays_bias else bias_then))
            variances.append(variance.clamp_min(0))
        all_means = torch.stack(means)
        variance = torch.stack(variances).mean(0) + all_means.var(0, correction=0)
        return F.batch_norm(y, all_means.mean(0), variance)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "pointwise": {"kernel_size": 1},
    "biased": {"kernel_size": 3, "padding": 1, "bias": True},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_kind_of_convolution_pools_what_a_direct_computation_pools(name: str) -> None:
    """The transcription is right but for a bias: it takes each frame's mean with its old bias."""
    convolution = nn.Conv2d(4, 8, **{"bias": False, **CONVOLUTIONS[name]}).double()
    ours = with_cbn(convolution, window_size=3, **WHOLE_WINDOW)
    theirs = with_transcription(convolution, window_size=3, **AS_BATCH_NORM)
    pasts = [Past(block[0]) for block in (ours, theirs)]  # type: ignore[arg-type]  # A Conv2d.
    for seed in range(3):
        x = 0.5 + random_frame(seed, 2, 4, 7, 8, dtype=torch.float64)
        results = []
        for block, past, form in zip((ours, theirs), pasts, ("centred", "paper"), strict=True):
            past.add(x)
            y = block[0](x)
            expected = past.normalize(y, form=form, todays_bias=True)
            results.append((block[1](y), expected, past.normalize(y, form=form, todays_bias=False)))
            with torch.no_grad():
                for parameter in block[0].parameters():
                    parameter.add_(0.3 + 0.05 * random_frame(seed, *parameter.shape).double())
    (output, expected, _), (their_output, theirs_expected, stale) = results
    # float64 on both sides; the margin is some thousand roundings.
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(their_output, stale, rtol=1e-10, atol=1e-10)
    assert bool((their_output - theirs_expected).abs().max() > 0.1) is (name == "biased")


def test_a_frozen_convolution_passes_gradients_to_its_input() -> None:
    """The transcription differentiates by the frozen weight, and raises."""
    convolution = nn.Conv2d(2, 3, 3)
    convolution.requires_grad_(False)
    ours = with_cbn(convolution, window_size=3)
    theirs = with_transcription(convolution, window_size=3)
    for seed in range(3):
        x = random_frame(seed, 1, 2, 6, 6).requires_grad_()
        ours(x).pow(3).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
    assert ring(ours).filled == 2
    with pytest.raises(RuntimeError, match="does not require grad"):
        theirs(x)


class Heads(nn.Module):
    """What has no plain convolution of its own: a transposed, a deformable and a shared one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 1)
        self.up_norm = nn.BatchNorm2d(3)
        self.deformable = DeformConv2d(2, 3, 1)
        self.deformable_norm = nn.BatchNorm2d(3)
        self.head = nn.Conv2d(2, 3, 1)
        self.head_norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        offsets = x.new_zeros(x.shape[0], 2, *x.shape[2:])
        levels = [self.head_norm(self.head(level)).mean() for level in (x, x[..., ::2])]
        total = self.up_norm(self.up(x)) + self.deformable_norm(self.deformable(x, offsets))
        output: Tensor = total + levels[0] + levels[1]
        return output


def test_transposed_deformable_and_shared_convolutions_stay_batch_normalization() -> None:
    """They are reported, with the reason, and train as before.

    Put behind them by hand, the transcription raises on the transposed convolution, whose weight
    has inputs before outputs, and one pass of the shared head fills two entries of its window. On a
    deformable convolution it works: it needs no formula for the derivative.
    """
    model, report = convert_batchnorm(Heads(), torch.zeros(2, 2, 8, 8), kind="cbn")
    assert not report.converted
    reasons = {entry.name: entry.reason for entry in report.left}
    assert list(reasons) == ["up_norm", "deformable_norm", "head_norm"]
    assert "output of ConvTranspose2d 'up', not of a Conv2d" in reasons["up_norm"]
    assert "output of DeformConv2d 'deformable', not of a Conv2d" in reasons["deformable_norm"]
    assert "it runs 2 times a forward pass" in reasons["head_norm"]
    before = copy.deepcopy(model.state_dict())
    frame = 1 + random_frame(0, 1, 2, 8, 8)
    model(frame).pow(3).sum().backward()
    for name in reasons:
        assert type(model.get_submodule(name)) is nn.BatchNorm2d
        gradient = model.get_parameter(f"{name}.bias").grad
        assert gradient is not None
        assert gradient.abs().min() > 0
        running = f"{name}.running_mean"
        assert not torch.equal(model.state_dict()[running], before[running])
    up = PlainCrossIterationBatchNorm2d(model.get_submodule("up"))  # type: ignore[arg-type]  # Not a Conv2d: the misuse shown.
    with pytest.raises(RuntimeError, match="size of tensor"):
        up(model.get_submodule("up")(frame))
    model.head_norm = PlainCrossIterationBatchNorm2d(model.head)  # type: ignore[arg-type]
    model(frame)
    assert len(model.head_norm.past_means) == 2


@pytest.mark.parametrize(("dtype", "mean"), [(torch.float16, 300.0), (torch.bfloat16, 40.0)])
def test_autocast_keeps_float32_statistics_of_the_16_bit_activations(
    dtype: torch.dtype, mean: float
) -> None:
    """The transcription squares 16-bit activations: float16 overflows, bfloat16 has no digit."""
    convolution = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(convolution.weight)
    ours = with_cbn(convolution, window_size=3)
    theirs = with_transcription(convolution, window_size=3, **AS_BATCH_NORM)
    x = mean + random_frame(0, 2, 1, 16, 16)
    with torch.autocast("cpu", dtype=dtype):
        y = ours[0](x)
        assert y.dtype == dtype
        output, their_output = ours[1](y), theirs(x)
    exact = y.detach().double()
    window = ring(ours)
    assert {b.dtype for b in window.buffers() if b.is_floating_point()} == {torch.float32}
    # Statistics in float32, with roundings of 6e-8 of the mean.
    torch.testing.assert_close(window.means[0].double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    variance = exact.var((0, 2, 3), correction=0)
    torch.testing.assert_close(window.variances[0].double(), variance, rtol=1e-4, atol=0)
    assert ours[1].running_mean.dtype == torch.float32
    truth = F.batch_norm(exact, None, None, training=True)
    # The output is rounded once: half of the type's eps, of values below 4.
    margin = 4 * torch.finfo(dtype).eps
    assert output.dtype == dtype
    assert (output.double() - truth).abs().max() < margin
    error = (their_output.double() - truth).abs().max()
    assert bool(error.isnan()) if dtype == torch.float16 else bool(error > 1)


def test_channels_last_gives_the_same_values_in_the_same_format() -> None:
    """The transcription survives this: its operations keep the format."""
    block = with_cbn(nn.Conv2d(2, 3, 3, padding=1), window_size=3)
    twin = copy.deepcopy(block).to(memory_format=torch.channels_last)
    for seed in range(4):
        x = random_frame(seed, 2, 2, 6, 6)
        output = twin(x.contiguous(memory_format=torch.channels_last))
        assert output.is_contiguous(memory_format=torch.channels_last)
        # Another kernel sums in another order.
        torch.testing.assert_close(output, block(x), rtol=1e-5, atol=1e-5)


def test_torch_compile_takes_a_block_without_a_graph_break() -> None:
    """The transcription differentiates inside its forward pass, which the compiler refuses."""
    convolution = nn.Conv2d(2, 3, 3)
    ours = with_cbn(convolution, window_size=3)
    theirs = with_transcription(convolution, window_size=3)
    twin = copy.deepcopy(ours)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for seed in range(4):
        x = random_frame(seed, 1, 2, 6, 6)
        torch.testing.assert_close(compiled(x), ours(x), rtol=1e-5, atol=1e-5)
    assert ring(twin).filled == 2
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"autograd\.grad"):
        torch.compile(theirs, fullgraph=True, backend="aot_eager")(x)


def test_a_model_turned_to_float64_remembers_in_float64() -> None:
    """The transcription's lists are no buffers and stay float32."""
    convolution = nn.Conv2d(2, 3, 3)
    ours = with_cbn(convolution, window_size=3)
    theirs = with_transcription(convolution, window_size=3)
    for block in (ours, theirs):
        for seed in range(3):
            block(random_frame(seed, 1, 2, 6, 6))
        block.double()
    assert {b.dtype for b in ring(ours).buffers() if b.is_floating_point()} == {torch.float64}
    layer = theirs[1]
    assert isinstance(layer, PlainCrossIterationBatchNorm2d)
    assert {tensor.dtype for tensor in layer.history()} == {torch.float32}
    x = random_frame(4, 1, 2, 6, 6, dtype=torch.float64)
    assert ours(x).dtype == torch.float64
    mean = ours[0](x).mean((0, 2, 3))
    # The newest entry is today's; float32 would be off by 1e-8 or more.
    difference = (ring(ours).means + ours.get_parameter("0.bias") - mean).abs().amin(0)
    assert difference.max() < 1e-14
