"""Exporting a frozen network: to ONNX, to OpenVINO, and to 8 bits by quantization.

The graph takes the camera's numbers (N, H, W, C), H and W any multiples of the stride, and answers
with probabilities (N, K, H, W): whoever runs it elsewhere can't standardize wrongly.
"""

import copy
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.bundle import BundleInfo
from models.engines import INPUT_NAME, OUTPUT_NAME, PixelNetwork, optional_library
from models.errors import EngineError
from models.preprocessing import Pixels

ONNX_NAME = "model.onnx"
OPENVINO_NAME = "model.xml"
INT8_NAME = "model-int8.xml"
# ONNX Runtime 1.22 and OpenVINO 2026 know it whole, and torch's exporter needs no conversion to it.
_OPSET = 18


def check_exportable(info: BundleInfo) -> None:
    """Refuse a model that has no exported form.

    Raises:
        EngineError: It is a detector, or its camera delivers frames that no runtime takes.
    """
    if info.task == "detection":
        raise EngineError(
            "detector_not_exported",
            "a detector's anchors and suppression of doubles are not exported; torch serves it",
            hint="deploy it as it is; /predict needs no export",
        )


def export_onnx(network: nn.Module, info: BundleInfo, path: Path) -> None:
    """Write a folded network as ONNX, standardization and sigmoid included.

    Args:
        network: Folded, float32, in eval mode; it is copied to the processor.
        info: The bundle's; classes, thresholds and stride are written into the file's metadata.
        path: The file; it appears whole or not at all.

    Raises:
        EngineError: The network can't be exported.
    """
    check_exportable(info)
    graph = PixelNetwork(copy.deepcopy(network).cpu(), info.preprocessing).eval()
    # Two images of unlike sides: nothing that is equal by chance becomes a constant.
    stride_px, channels = info.preprocessing.stride_px, info.preprocessing.in_channels
    dtype = torch.uint8 if info.preprocessing.bit_depth == 8 else torch.uint16
    example = torch.zeros(2, 2 * stride_px, 3 * stride_px, channels, dtype=dtype)
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # The exporter warns of its own libraries' deprecations.
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                graph, (example,), dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},)
            )
            program: Any = torch.onnx.export(
                exported,
                (example,),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        # The exporter's failures are of many kinds: each means that this network has no such form.
        raise EngineError(
            "export_failed",
            f"the network can't be exported: {str(error).strip().splitlines()[0]}",
            hint="torch serves the model all the same",
        ) from error
    program.model.metadata_props.update(_metadata(info))
    _written_whole(path, lambda partial: program.save(partial, external_data=False))


def convert_to_openvino(onnx_path: Path, path: Path) -> None:
    """Write an exported ``model.onnx`` as OpenVINO's ``.xml`` and ``.bin``, weights in float32.

    Raises:
        EngineError: OpenVINO can't read it, or is not installed.
    """
    openvino = optional_library("openvino")
    try:
        # Not openvino.convert_model, which reports its use over the network.
        model = openvino.Core().read_model(onnx_path)
    except RuntimeError as error:
        raise EngineError(
            "export_failed", f"OpenVINO can't read the exported network: {error}"
        ) from error
    _save_openvino(model, path)


def quantize(openvino_path: Path, windows: Sequence[Pixels], path: Path) -> None:
    """Write an 8-bit form of an OpenVINO model, its ranges those that the windows show.

    Post-training quantization by NNCF with its mixed preset: weights and activations in 8 bits,
    activations after functions that are not ReLU asymmetric.  The first and the last convolution
    keep their precision: the one sees single pixels, the other decides the verdict.

    Args:
        openvino_path: The ``.xml`` in float32.
        windows: (h, w, C) pixels of ordinary frames, defects among them; each side a multiple of
            the stride.  None of them may be a frame that judges the result.
        path: The ``.xml`` to write.

    Raises:
        EngineError: NNCF can't quantize the network, or is not installed.
    """
    # It would report its use over the network.
    os.environ.setdefault("NNCF_CI", "1")
    nncf, openvino = optional_library("nncf"), optional_library("openvino")
    model = openvino.Core().read_model(openvino_path)
    convolutions = [
        node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"
    ]
    kept = sorted({convolutions[0].get_friendly_name(), convolutions[-1].get_friendly_name()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = nncf.quantize(
                model,
                nncf.Dataset(list(windows), lambda window: window[None]),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(windows),
                ignored_scope=nncf.IgnoredScope(names=kept),
            )
    except Exception as error:
        # NNCF's exceptions share no base with those of the libraries under it.
        raise EngineError("export_failed", f"the network can't be quantized: {error}") from error
    _save_openvino(quantized, path)


def companion_files(path: Path) -> tuple[Path, ...]:
    """Return every file of an export: OpenVINO keeps its weights beside the ``.xml``."""
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)


def _save_openvino(model: Any, path: Path) -> None:
    openvino = optional_library("openvino")
    with_weights = path.with_name(f".{path.stem}.partial.xml")
    openvino.save_model(model, with_weights, compress_to_fp16=False)
    for source, target in zip(companion_files(with_weights), companion_files(path), strict=True):
        source.replace(target)


def _written_whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    shutil.move(partial, path)


def _metadata(info: BundleInfo) -> dict[str, str]:
    return {
        "hairline.classes": "\n".join(info.classes),
        "hairline.operating_point": info.operating_point.model_dump_json(),
        "hairline.stride_px": str(info.preprocessing.stride_px),
        "hairline.weights_sha256": info.weights_sha256,
    }
