"""Eight bits go where they change little, and use all of their range."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.engines import OpenVinoEngine, processor_multiplies_bytes
from models.exporting import save_openvino
from models.quantization import quantize

openvino = pytest.importorskip("openvino", reason="a box that serves on its GPU may lack it")
WIDE, NARROWING, WIDENING, DEPTHWISE = "wide", "narrowing", "widening", "depthwise"


def weights_of(rng: np.random.Generator, *shape: int) -> Any:
    fan_in = np.prod(shape[-3:])
    return openvino.opset13.constant(
        (rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    )


def a_network(path: Path) -> Path:
    """Write a graph as exports are: pixels (N, H, W, 1) to probabilities (N, 2, H, W)."""
    ops, rng = openvino.opset13, np.random.default_rng(0)
    pixels = ops.parameter(openvino.PartialShape([-1, -1, -1, 1]), np.uint8, "pixels")
    planes = ops.transpose(pixels, ops.constant(np.array([0, 3, 1, 2])))
    value = ops.divide(
        ops.subtract(ops.convert(planes, "f32"), ops.constant(np.float32(128))),
        ops.constant(np.float32(64)),
    )
    at = ([1, 1], [1, 1], [1, 1], [1, 1])
    for name, weights in {
        "first": weights_of(rng, 64, 1, 3, 3),
        WIDE: weights_of(rng, 64, 64, 3, 3),
        NARROWING: weights_of(rng, 16, 64, 3, 3),
        WIDENING: weights_of(rng, 64, 16, 3, 3),
        DEPTHWISE: weights_of(rng, 64, 1, 1, 3, 3),
        "last": weights_of(rng, 2, 64, 3, 3),
    }.items():
        convolve = ops.group_convolution if name == DEPTHWISE else ops.convolution
        value = convolve(value, weights, *at)
        value.set_friendly_name(name)
        value = ops.relu(value) if name != "last" else ops.sigmoid(value)
    save_openvino(openvino.Model([value], [pixels], "network"), path)
    return path


def convolutions(path: Path) -> dict[str, Any]:
    return {
        node.get_friendly_name(): node
        for node in openvino.Core().read_model(path).get_ordered_ops()
        if "Convolution" in node.get_type_name()
    }


def quantized_names(path: Path) -> set[str]:
    """Return the convolutions whose weights are no longer constants of floats."""
    return {
        name
        for name, node in convolutions(path).items()
        if node.input_value(1).get_node().get_type_name() != "Constant"
    }


def frames(count: int, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.integers(60, 200, (64, 64, 1), np.uint8) for _ in range(count)]


def logits(path: Path, name: Any) -> Any:
    engine = OpenVinoEngine(path, name)
    answers = engine.probabilities(np.stack(frames(4, seed=1))).astype(float)
    return np.log(answers / (1 - answers))


def test_the_mixed_form_spares_narrow_layers_and_answers_more_nearly_alike(
    tmp_path: Path,
) -> None:
    pytest.importorskip("nncf", reason="a box that serves on its GPU may lack it")
    source = a_network(tmp_path / "model.xml")
    whole, mixed = tmp_path / "whole.xml", tmp_path / "mixed.xml"
    quantize(source, frames(4), whole)
    quantize(source, frames(4), mixed, spares_narrow=True)
    assert quantized_names(whole) == {WIDE, NARROWING, WIDENING, DEPTHWISE}
    assert quantized_names(mixed) == {WIDE}

    expected = logits(source, "openvino-fp32")
    errors = {
        path.stem: np.sqrt(np.mean((logits(path, "openvino-int8") - expected) ** 2))
        for path in (whole, mixed)
    }
    assert 0 < errors["mixed"] < errors["whole"] < 0.1


def test_weights_use_all_of_their_range_where_the_processor_sums_bytes_in_32_bits(
    tmp_path: Path,
) -> None:
    pytest.importorskip("nncf", reason="a box that serves on its GPU may lack it")
    if not processor_multiplies_bytes():
        pytest.skip("this processor's sums of products of bytes have 16 bits")
    path = tmp_path / "quantized.xml"
    quantize(a_network(tmp_path / "model.xml"), frames(2), path)
    stored = [
        node.data
        for node in openvino.Core().read_model(path).get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8
    ]
    assert len(stored) == 4
    for weights in stored:
        # Each output has a scale of its own.
        greatest = np.abs(weights.astype(int).reshape(64 if len(weights) == 64 else 16, -1)).max(1)
        assert (greatest == 127).all()
