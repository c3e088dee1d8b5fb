"""A detector's memory is counted without values, as what it finds and is told would have it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models import build_model
from models.detection_spec import DetectionSpec
from models.spec import ModelSpec
from training.detection import DetectionBatch, DetectorLoss
from training.memory.fake_tensors import SmallForUnknown, fake_copy
from training.memory.live_bytes import LiveBytes
from training.memory.unknown_sizes import MostOfUnknownSize
from training.optimizer_step import Learner, take_step

HEIGHT_PX, WIDTH_PX = 64, 96


def detector(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    settled = DetectionSpec(pyramid_channels=32, finest_stride_px=4).settle(architecture, [])
    spec = ModelSpec(architecture=architecture, encoder="mobilenet_v3_small", detection=settled)
    network = build_model(spec, class_count=2, in_channels=1)
    return network.to(memory_format=torch.channels_last).train()


def batch_of(boxes: int) -> DetectionBatch:
    corner = torch.linspace(0, 50, boxes)[:, None].expand(-1, 2)
    images = tuple(torch.randn(1, HEIGHT_PX, WIDTH_PX) for _ in range(2))
    labels = torch.ones(boxes, dtype=torch.int64)
    return DetectionBatch(images, (torch.cat([corner, corner + 12], 1),) * 2, (labels,) * 2, 0)


def step_peak(network: nn.Module, boxes: int) -> int:
    learner = Learner(network, DetectorLoss(), torch.device("cpu"), torch.float32)
    optimizer = torch.optim.AdamW(network.parameters())
    batch = batch_of(boxes)
    with LiveBytes() as live, SmallForUnknown(), MostOfUnknownSize():
        take_step(learner, [batch], optimizer, max_gradient_norm=1.0, step=1)
    peak_bytes: int = live.peak_bytes
    return peak_bytes


def counted_peak(network: nn.Module, boxes: int) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = fake_copy(network, mode).train()
    with mode:
        return step_peak(fake, boxes)


@pytest.mark.parametrize(("architecture", "most_over"), [("retinanet", 0.01), ("fcos", 0.01)])
def test_a_step_without_memory_counts_what_a_detector_s_real_one_holds(
    architecture: str, most_over: float
) -> None:
    network = detector(architecture)
    before = copy.deepcopy(network.state_dict())
    counted = counted_peak(network, boxes=60)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    real = step_peak(network, boxes=60)
    assert real * (1 - 1e-3) <= counted <= (1 + most_over) * real


def test_a_two_stage_detector_is_counted_with_all_regions_on_one_map() -> None:
    network = detector("fasterrcnn")
    counted, real = counted_peak(network, boxes=5), step_peak(network, boxes=5)
    # Two frames of 512 regions of 32 channels and 7x7 places in float32 are pooled once more.
    assert real <= counted <= real + 2 * 512 * 32 * 49 * 4 + 1e6


def test_each_labelled_box_is_compared_with_every_anchor() -> None:
    network = detector("retinanet")
    places = sum((HEIGHT_PX // stride) * (WIDTH_PX // stride) for stride in (4, 8, 16, 32))
    # At least its overlap with nine anchors a place, in float32.
    grown = counted_peak(network, boxes=400) - counted_peak(network, boxes=300)
    assert grown >= 100 * 9 * places * 4


def test_values_that_are_there_still_decide() -> None:
    mask = torch.tensor([True, False, True])
    with MostOfUnknownSize():
        assert torch.nonzero(mask).flatten().tolist() == [0, 2]
        assert torch.arange(3)[mask].tolist() == [0, 2]


def test_a_mask_that_was_written_in_places_has_no_more_of_them() -> None:
    mode = FakeTensorMode()
    with mode, MostOfUnknownSize():
        drawn, other = (torch.zeros(1000, dtype=torch.uint8) for _ in range(2))
        drawn[torch.arange(7)] = 1
        other[torch.arange(5)] = 1
        for mask, count in ((drawn, 7), (drawn | other, 12), (torch.cat([drawn, other]), 12)):
            assert torch.where(mask)[0].shape == (count,)
        unknown: Tensor = torch.rand(1000) > 0.5
        assert torch.rand(1000)[unknown].shape == (1000,)
        pairs = torch.where(torch.rand(20, 1000) > 0.5)
        assert [part.shape for part in pairs] == [(1000,), (1000,)]
