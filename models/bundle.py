"""A bundle is a model on disk: ``weights.safetensors`` and ``bundle.json``, and no pickle.

Beside them may lie ``part_scores.json``, the evidence that other thresholds rest on.

The weights are those of an ordinary network with ``nn.BatchNorm2d``, not yet folded, so that a
bundle can be trained further, exported or read by other tools.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.architecture import Task
from models.defects import OperatingPoint
from models.errors import BundleError
from models.part_scores import PART_SCORES_NAME, PartScores
from models.preprocessing import Preprocessing
from models.registry import build_model, example_input
from models.spec import ModelSpec, NormSpec
from norm import convert_batchnorm

WEIGHTS_NAME = "weights.safetensors"
INFO_NAME = "bundle.json"


class BundleInfo(BaseModel):
    """What serving must know about a model besides its weights.

    Attributes:
        format_version: Of this file.
        task: What the network answers.
        classes: Defect classes in the order of the network's outputs.
        model: The network.
        norm: What normalization it was trained with; it is served as plain batch normalization.
        preprocessing: How frames become tensors.
        operating_point: Thresholds and the evidence behind them.
        dataset_digest: Of the manifest it was trained on.
        sampling: How often training saw defects, which says nothing about how often the line makes
            them; the metrics are of frames as they came.
        metrics: On the test split.
        libraries: Versions it was trained with.
        ema_decay: Of the moving average that the weights are; None for weights as a step left them.
        weights_sha256: Digest of the weights' file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    task: Task = "segmentation"
    classes: tuple[str, ...]
    model: ModelSpec
    norm: NormSpec
    preprocessing: Preprocessing
    operating_point: OperatingPoint
    dataset_digest: str
    sampling: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    libraries: dict[str, str] = {}
    weights_sha256: str = ""
    ema_decay: float | None = None

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if self.task != self.model.task:
            raise ValueError(
                f"task is {self.task!r}, and {self.model.architecture} is made for "
                f"{self.model.task}"
            )
        return self


@dataclass(frozen=True)
class Bundle:
    """A model in memory: what it is, and the network with its weights, in eval mode."""

    info: BundleInfo
    network: nn.Module


def write_bundle(
    path: Path,
    info: BundleInfo,
    weights: dict[str, Tensor],
    part_scores: PartScores | None = None,
) -> BundleInfo:
    """Write a bundle; a reader sees either all of it or nothing.

    Args:
        path: The bundle's directory; an existing one is replaced.
        info: Everything but the weights' digest, which is filled in.
        weights: State dict of the plain network.
        part_scores: What other thresholds would rest on, for a file of its own: serving reads
            ``bundle.json`` at each frame.

    Returns:
        The info as written.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(contiguous, partial / WEIGHTS_NAME)
    complete = info.model_copy(update={"weights_sha256": file_sha256(partial / WEIGHTS_NAME)})
    (partial / INFO_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if part_scores is not None:
        told = part_scores.model_copy(update={"weights_sha256": complete.weights_sha256})
        (partial / PART_SCORES_NAME).write_text(told.model_dump_json() + "\n", encoding="utf-8")
    for written in partial.iterdir():
        _flush_to_disk(written)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    _flush_to_disk(path.parent)
    return complete


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and build its network; all that serving needs.

    Raises:
        BundleError: If a file is missing, damaged or of another format, or the weights are not
            those that ``bundle.json`` names.
    """
    info = read_bundle_info(path)
    weights = read_bundle_weights(path, info)
    network = build_network(info)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _bundle_error(
            "bundle_damaged", f"the weights don't fit: {error}", path / WEIGHTS_NAME
        ) from error
    return Bundle(info=info, network=network.eval())


def read_bundle_weights(path: Path, info: BundleInfo) -> dict[str, Tensor]:
    """Read a bundle's weights.

    Raises:
        BundleError: If they are missing, damaged or not those that ``bundle.json`` names.
    """
    weights_path = path / WEIGHTS_NAME
    if not weights_path.is_file():
        raise _bundle_error("bundle_incomplete", "the weights are missing", weights_path)
    if file_sha256(weights_path) != info.weights_sha256:
        raise _bundle_error(
            "bundle_damaged", "the weights' SHA-256 is not the one in bundle.json", weights_path
        )
    try:
        weights: dict[str, Tensor] = load_file(weights_path)
    except SafetensorError as error:
        raise _bundle_error("bundle_damaged", f"no safetensors: {error}", weights_path) from error
    return weights


def build_network(info: BundleInfo) -> nn.Module:
    """Build the network that a bundle's weights belong to, with random weights."""
    in_channels = info.preprocessing.in_channels
    network = build_model(info.model, class_count=len(info.classes), in_channels=in_channels)
    if info.norm.kind == "gn":
        # Group norm has no statistics to freeze and stays what it is; all other kinds serve as
        # plain batch normalization.
        example = example_input(info.model, in_channels)
        network, _ = convert_batchnorm(network, example, kind="gn")
    return network


def read_bundle_info(path: Path) -> BundleInfo:
    """Read ``bundle.json`` alone.

    Raises:
        BundleError: If it is missing, damaged or of another format.
    """
    info_path = path / INFO_NAME
    try:
        return BundleInfo.model_validate(json.loads(info_path.read_bytes()))
    except FileNotFoundError as error:
        raise _bundle_error("bundle_incomplete", "bundle.json is missing", info_path) from error
    except (ValidationError, ValueError) as error:
        raise _bundle_error(
            "bundle_damaged", f"bundle.json can't be read: {error}", info_path
        ) from error


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that shape a model's numbers."""
    import segmentation_models_pytorch
    import timm

    return {
        "torch": torch.__version__,
        "segmentation_models_pytorch": segmentation_models_pytorch.__version__,
        "timm": timm.__version__,
    }


def _bundle_error(code: str, detail: str, path: Path) -> BundleError:
    return BundleError(
        code, detail, file=path.name, hint="copy the bundle again from where it was trained"
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
