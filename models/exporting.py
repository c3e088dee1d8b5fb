"""Exporting a frozen network: to ONNX and to OpenVINO; see `models.quantization` for 8 bits.

The graph takes the camera's numbers (N, H, W, C), H and W any multiples of the stride, and answers
with probabilities (N, K, H, W): whoever runs it elsewhere can't standardize wrongly.
"""

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.bundle import BundleInfo
from models.engines import (
    INPUT_NAME,
    OUTPUT_NAME,
    EngineName,
    PixelNetwork,
    optional_library,
)
from models.errors import EngineError

ONNX_NAME = "model.onnx"
OPENVINO_NAME = "model.xml"
INT8_NAMES: dict[EngineName, str] = {
    "openvino-int8": "model-int8.xml",
    "openvino-int8-mixed": "model-int8-mixed.xml",
}
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
    save_openvino(model, path)


def companion_files(path: Path) -> tuple[Path, ...]:
    """Return every file of an export: OpenVINO keeps its weights beside the ``.xml``."""
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)


def save_openvino(model: Any, path: Path) -> None:
    """Write a model's ``.xml`` and ``.bin``, float32 as it is."""
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
