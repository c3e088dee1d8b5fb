"""Quantizing an exported network to 8 bits, whole or where that changes little of the answer."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.engines import optional_library, processor_multiplies_bytes
from models.errors import EngineError
from models.exporting import save_openvino
from models.preprocessing import Pixels

# Rounding errors average out over the channels that are summed: by the convolution itself, and by
# the next one those that it writes.  Narrow are the last decoder blocks, which decide the verdict,
# and depthwise convolutions; they also gain least, being mostly occupied with moving numbers.
_NARROW_CHANNELS = 32
# A lamp that fails is seen, too: every third window sets ranges also at this share of its light.
_DIMMED = 0.3


def quantize(
    openvino_path: Path, windows: Sequence[Pixels], path: Path, *, spares_narrow: bool = False
) -> None:
    """Write an 8-bit form of an OpenVINO model, its ranges those that windows show, some dimmed.

    Post-training quantization by NNCF with its mixed preset: weights and activations in 8 bits,
    activations after functions that are not ReLU asymmetric.  The first and the last convolution
    keep their precision: the one sees single pixels, the other decides the verdict.  Where NNCF's
    own defaults move answers they are left, see `_precisely`.

    Args:
        openvino_path: The ``.xml`` in float32.
        windows: (h, w, C) pixels of ordinary frames, defects among them; each side a multiple of
            the stride.  None of them may be a frame that judges the result.
        path: The ``.xml`` to write.
        spares_narrow: Whether all convolutions keep their precision that sum or write few channels.

    Raises:
        EngineError: NNCF can't quantize the network, or is not installed.
    """
    # It would report its use over the network.
    os.environ.setdefault("NNCF_CI", "1")
    nncf, openvino = optional_library("nncf"), optional_library("openvino")
    model = openvino.Core().read_model(openvino_path)
    shown = [*windows, *((window * _DIMMED).astype(window.dtype) for window in windows[::3])]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = nncf.quantize(
                model,
                nncf.Dataset(shown, lambda window: window[None]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(shown),
                ignored_scope=nncf.IgnoredScope(names=_kept(model, spares_narrow=spares_narrow)),
                advanced_parameters=_precisely(nncf),
            )
    except Exception as error:
        # NNCF's exceptions share no base with those of the libraries under it.
        raise EngineError("export_failed", f"the network can't be quantized: {error}") from error
    save_openvino(quantized, path)


def _kept(model: Any, *, spares_narrow: bool) -> list[str]:
    """Return the names of the convolutions that keep their precision."""
    convolutions = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution")
    ]
    kept = {convolutions[0].get_friendly_name(), convolutions[-1].get_friendly_name()}
    if spares_narrow:
        kept |= {
            node.get_friendly_name() for node in convolutions if _channels(node) <= _NARROW_CHANNELS
        }
    return sorted(kept)


def _channels(convolution: Any) -> int:
    """Return how many channels a convolution sums or writes, whichever is less, in each group."""
    # Weights are (outputs, inputs, h, w) or (groups, outputs, inputs, h, w).
    weights = convolution.input(1).get_partial_shape()
    channels: int = min(weights[-4].get_length(), weights[-3].get_length())
    return channels


def _precisely(nncf: Any) -> Any:
    """Return the options of NNCF that keep answers near the network's own.

    Its defaults spread 8 bits over the mean of the windows' extremes, which cuts off the strongest
    activations, and those are defects'; halve the range of many weights so that sums of products
    fit the 16 bits of older processors, which costs one bit of eight; and correct biases by the
    windows' means, which moves answers further away: windows are chosen around defects.
    """
    ranges = optional_library("nncf.quantization.range_estimator").RangeEstimatorParametersSet
    return nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True,
        overflow_fix=nncf.OverflowFix.DISABLE if processor_multiplies_bytes() else None,
        activations_range_estimator_params=ranges.MINMAX,
    )
