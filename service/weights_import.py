"""Making a file of weights from a checkpoint that somebody brought: timm's, torchvision's, ours."""

import contextlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import ModelSpec, architecture_named, build_model
from models.bundle import file_sha256
from models.encoders import ENCODERS
from models.errors import WeightsError
from models.weights import Source, match_weights
from service.errors import InvalidRequest

# Where training programs put the tensors among other things, by custom.
_WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict", "state_dict_ema")
# Its encoders are those of every architecture for segmentation.
_ANY = architecture_named("unet")
# What wrappers for several devices or compilation put before every name.
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class ImportedWeights:
    """A file that was written.

    Attributes:
        path: Of it.
        sha256: Of it.
        source_sha256: Of the checkpoint, to compare with what its publisher says.
        tensors: How many it holds.
        encoders: Those that it can start.
    """

    path: Path
    sha256: str
    source_sha256: str
    tensors: int
    encoders: tuple[str, ...]


def import_checkpoint(source: Path, weights_dir: Path, name: str) -> ImportedWeights:
    """Write ``NAME.safetensors`` from a checkpoint; an older file of that name is replaced.

    A ``.pth`` is a pickle. It is read by torch's restricted unpickler (``weights_only``), which
    builds tensors and plain containers and refuses everything else, here alone: by a command that
    an administrator starts on a file of his own.

    Side effects: writes into the folder, which is made if need be.

    Raises:
        InvalidRequest: The file holds no tensors, or no encoder can start from them.
    """
    tensors = _tensors_of(source)
    digest = file_sha256(source)
    encoders = fitting_encoders(Source(source.name, digest, tensors))
    if not encoders:
        raise InvalidRequest(
            "weights_match_nothing",
            f"no encoder of ours has tensors named as those in {source.name}, such as "
            f"{', '.join(list(tensors)[:3])}",
            file=source.name,
            hint="docs/models.md lists whose checkpoints fit which encoder",
        )
    weights_dir.mkdir(parents=True, exist_ok=True)
    path = weights_dir / f"{name}.safetensors"
    partial = path.with_suffix(".partial")
    said = {"source": source.name, "source_sha256": digest, "encoders": ",".join(encoders)}
    save_file(tensors, partial, metadata=said)
    partial.replace(path)
    return ImportedWeights(path, file_sha256(path), digest, len(tensors), encoders)


def fitting_encoders(source: Source) -> tuple[str, ...]:
    """Return the encoders that could start from these tensors, at their full depth."""
    found = []
    for encoder in ENCODERS:
        with contextlib.suppress(WeightsError):
            match_weights(_tensors_wanted(encoder), _ANY, source, ("defect",))
            found.append(encoder)
    return tuple(found)


@cache
def _tensors_wanted(encoder: str) -> dict[str, Tensor]:
    """Return the names and sizes of a network of one encoder, without memory."""
    with torch.device("meta"):
        network = build_model(ModelSpec(encoder=encoder), class_count=1, in_channels=3)
    state: dict[str, Tensor] = network.state_dict()
    return state


def _tensors_of(source: Path) -> dict[str, Tensor]:
    try:
        content: Any = (
            load_file(source)
            if source.suffix == ".safetensors"
            else torch.load(source, map_location="cpu", weights_only=True)
        )
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise InvalidRequest(
            "checkpoint_unreadable",
            f"{source.name} can't be read: {' '.join(str(error).split())[:300]}",
            file=source.name,
            hint="bring the weights alone (a state dict), as .safetensors or .pth, not a whole "
            "pickled model",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = (
        {_bare(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise InvalidRequest(
            "checkpoint_empty",
            f"{source.name} holds no named tensors",
            file=source.name,
            hint="bring a state dict, as `torch.save(model.state_dict(), …)` writes it",
        )
    # Copies: a checkpoint may let two names share memory, which safetensors refuses.
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
