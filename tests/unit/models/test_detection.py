"""Detectors see every pixel of a frame as it is, train on frames without a defect, and convert."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import (
    DetectionSpec,
    ModelSpec,
    SpecError,
    architecture_named,
    build_model,
    load_weights,
    pad_to_multiple,
)
from models.weights import Source
from norm import convert_batchnorm
from norm.tracing import tensors_in

ARCHITECTURES = ("fasterrcnn", "retinanet", "fcos")
BOXES = [(12.0, 9.0), (30.0, 20.0), (7.0, 8.0)]


def small(architecture: str, encoder: str = "mobilenet_v3_small") -> ModelSpec:
    spec = ModelSpec(architecture=architecture, encoder=encoder)
    detection = DetectionSpec(pyramid_channels=32).settle(architecture, BOXES)
    return spec.model_copy(update={"detection": detection})


def detector(architecture: str, in_channels: int = 1) -> Any:
    torch.manual_seed(0)
    return build_model(small(architecture), class_count=2, in_channels=in_channels)


def target(*boxes: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("training", [True, False])
def test_no_frame_is_resampled_on_its_way_to_the_encoder(architecture: str, training: bool) -> None:
    network = detector(architecture).train(training)
    frames = [torch.randn(1, 75, 133), torch.randn(1, 96, 64)]
    seen: list[Tensor] = []
    network.backbone.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    targets = [target((20, 10, 33, 21)), target()]
    with torch.no_grad():
        network(frames, targets if training else None)
    (batch,) = seen
    assert batch.shape == (2, 1, 96, 160)
    assert torch.equal(batch[0, :, :75, :133], frames[0])
    assert torch.equal(batch[1, :, :96, :64], frames[1])
    # What is added repeats the edge.
    assert torch.equal(batch[0, :, 75:, :133], frames[0][:, -1:].expand(1, 21, 133))
    assert torch.equal(batch[0:1, :, :75], pad_to_multiple(frames[0][None, :, :75], 32)[:, :, :75])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_boxes_are_pixels_of_the_frame_and_stay_inside_it(architecture: str) -> None:
    network = detector(architecture).eval()
    labelled = [target((20, 10, 33, 21))]
    assert network.transform([torch.zeros(1, 75, 133)], labelled)[1] is labelled
    with torch.no_grad():
        (answer,) = network([torch.randn(1, 75, 133)])
    boxes = answer["boxes"]
    assert len(boxes) > 0
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 133
    assert boxes[:, 3].max() <= 75
    unchanged = [{"boxes": torch.tensor([[1.25, 2.5, 3.75, 4.0]])}]
    assert network.transform.postprocess(unchanged, [(96, 160)], [(75, 133)]) is unchanged


@pytest.mark.parametrize("architecture", ["retinanet", "fcos"])
def test_anchors_lie_at_the_strides_of_the_maps(architecture: str) -> None:
    network = detector(architecture).eval()
    images, _ = network.transform([torch.zeros(1, 96, 160)])
    maps = list(network.backbone(images.tensors).values())
    (anchors,) = network.anchor_generator(images, maps)
    per_place = network.anchor_generator.num_anchors_per_location()[0]
    begin = 0
    for features, stride_px in zip(maps, (4, 8, 16, 32, 64, 128), strict=True):
        height, width = features.shape[-2:]
        level = anchors[begin : begin + height * width * per_place].reshape(height, width, -1, 4)
        begin += height * width * per_place
        centres = (level[..., :2] + level[..., 2:]) / 2
        # Rounding to whole pixels may put an anchor's middle half a pixel off.
        expected_x = stride_px * torch.arange(width).float()
        assert (centres[0, :, :, 0] - expected_x[:, None]).abs().max() <= 0.5
        expected_y = stride_px * torch.arange(height).float()
        assert (centres[:, 0, :, 1] - expected_y[:, None]).abs().max() <= 0.5
    assert begin == len(anchors)


def test_regions_of_a_small_padded_frame_are_read_at_the_scales_of_the_maps() -> None:
    pool = detector("fasterrcnn").roi_heads.box_roi_pool
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    maps = {str(level): torch.zeros(1, 32, 24 >> level, 24 >> level) for level in range(4)}
    # 65 px in a frame padded to 96: torchvision's guess from these sizes is a scale of 1/2.
    maps["0"][0, :, 12, 12] = 1.0
    pooled = pool(maps, [torch.tensor([[46.0, 46.0, 52.0, 52.0]])], [(65, 65)])
    assert pool.scales[0] == 1 / 4
    assert pooled.max() > 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frames_without_a_defect_are_trained_on(architecture: str) -> None:
    network = detector(architecture).train()
    losses = network([torch.randn(1, 64, 64), torch.randn(1, 64, 64)], [target(), target()])
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()  # type: ignore[no-untyped-call]
    first = next(network.backbone.encoder.parameters())
    assert first.grad is not None
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_few_steps_on_one_frame_lower_the_loss(architecture: str) -> None:
    network = detector(architecture).train()
    frame, labelled = torch.randn(1, 64, 64), target((20, 10, 36, 24))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(10):
        torch.manual_seed(1)
        loss = torch.stack(list(network([frame, frame], [labelled, target()]).values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_batch_normalization_becomes_cbn_and_only_heads_normalize_by_groups(
    architecture: str,
) -> None:
    network, report = convert_batchnorm(
        detector(architecture), torch.zeros(2, 1, 64, 64), kind="cbn"
    )
    assert len(report.converted) > 30
    assert {entry.kind for entry in report.converted} == {"cbn"}
    assert all(entry.convolution for entry in report.converted)
    assert {entry.kind for entry in report.left} <= {"gn"}
    assert all(entry.name.startswith("head.") for entry in report.left)
    network.train()([torch.randn(1, 64, 64)], [target((20, 10, 36, 24))])


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_other_encoders_give_a_pyramid_of_every_stride(encoder: str) -> None:
    network: Any = build_model(small("retinanet", encoder), class_count=1, in_channels=3)
    with torch.no_grad():
        maps = network.backbone.eval()(torch.zeros(1, 3, 128, 128))
    assert [features.shape[-1] for features in maps.values()] == [32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_under_autocast_the_encoder_is_bfloat16_and_every_box_and_loss_float32(
    architecture: str,
) -> None:
    network = detector(architecture).train()
    seen: dict[str, set[torch.dtype]] = {"encoder": set(), "maps": set(), "head": set()}

    def note(place: str) -> Any:
        return lambda _m, _i, output: seen[place].update(t.dtype for t in tensors_in(output))

    first = next(m for m in network.backbone.encoder.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(note("encoder"))
    network.backbone.register_forward_hook(note("maps"))
    head = network.rpn.head if architecture == "fasterrcnn" else network.head
    head.register_forward_hook(note("head"))
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([torch.randn(1, 64, 64)], [target((20, 10, 36, 24))])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert seen == {"encoder": {torch.bfloat16}, "maps": {torch.float32}, "head": {torch.float32}}
    # Looks at whole frames, which know no autocast, are float32 throughout.
    seen["encoder"].clear()
    with torch.no_grad():
        network.eval()([torch.randn(1, 64, 64)])
    assert seen["encoder"] == {torch.float32}


def test_a_detector_whose_anchors_were_not_derived_is_refused() -> None:
    with pytest.raises(SpecError) as refused:
        build_model(ModelSpec(architecture="fasterrcnn"), class_count=1, in_channels=1)
    assert refused.value.code == "detection_not_settled"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_segmentation_model_and_a_detector_start_from_each_other_s_encoder(
    architecture: str,
) -> None:
    unet = ModelSpec(encoder="mobilenet_v3_small")
    segmentation = build_model(unet, class_count=2, in_channels=1)
    network = detector(architecture)
    source = Source("earlier", "0", segmentation.state_dict(), ("pit", "scratch"))
    report = load_weights(network, architecture_named(architecture), source, ("pit", "scratch"))
    encoder = [name for name in network.state_dict() if name.startswith("backbone.encoder.")]
    assert set(report.loaded) == set(encoder)
    first = "backbone.encoder.model.conv_stem.weight"
    assert torch.equal(
        network.state_dict()[first], segmentation.state_dict()[first.removeprefix("backbone.")]
    )
    back = Source("earlier", "0", network.state_dict(), ("pit", "scratch"))
    returned = load_weights(segmentation, architecture_named("unet"), back, ("pit", "scratch"))
    assert len(returned.loaded) == len(encoder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_detector_goes_on_from_one_of_the_same_classes_and_not_from_rows_of_others(
    architecture: str,
) -> None:
    network, earlier = detector(architecture), detector(architecture)
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter.add_(0.5)
    same = Source("earlier", "0", earlier.state_dict(), ("pit", "scratch"))
    report = load_weights(network, architecture_named(architecture), same, ("pit", "scratch"))
    assert not report.random
    assert not report.unused
    others = Source("earlier", "0", earlier.state_dict(), ("dent", "stain"))
    report = load_weights(network, architecture_named(architecture), others, ("pit", "scratch"))
    prefix = architecture_named(architecture).head_prefix
    assert report.random.keys() == {n for n in network.state_dict() if n.startswith(prefix)}
