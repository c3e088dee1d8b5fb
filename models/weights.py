"""Starting a network from weights at hand: an encoder's from a file, or an earlier model's.

Nothing is downloaded and no pickle is read. Every tensor is accounted for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architecture import Architecture
from models.bundle import file_sha256, read_bundle_info, read_bundle_weights
from models.errors import WeightsError

# Of a report's lists in an error's text.
_NAMED = 3
# A statistic is measured anew in training; a network can start without it.
# A stage that holds its blocks by number, in ResNets and ConvNeXts.
_BLOCK = re.compile(r"layer\d+(?=\.\d+\.)|stages[._]\d+\.blocks(?=\.\d+\.)")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Source:
    """Weights as they were read.

    Attributes:
        name: Of the file or bundle, for messages.
        sha256: Of the weights' file.
        tensors: By their names in the file.
        classes: Classes of the head's rows, if the source says so.
    """

    name: str
    sha256: str
    tensors: dict[str, Tensor]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightsReport:
    """What became of each of a network's tensors.

    Attributes:
        source: The file's or bundle's name.
        sha256: Of the weights' file.
        loaded: Names in the network of tensors taken as they are.
        converted: Name and what was done to it, for each tensor that was taken otherwise.
        random: Name and reason, for each tensor that kept its random start.
        unused: Names in the file that the network has no use for.
    """

    source: str
    sha256: str
    loaded: tuple[str, ...]
    converted: dict[str, str]
    random: dict[str, str]
    unused: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report in a form that JSON can hold."""
        return asdict(self)

    def summary(self) -> str:
        """Return one sentence for a person."""
        text = f"{len(self.loaded)} tensors taken from {self.source}"
        if self.converted:
            text += f", {len(self.converted)} converted"
        if self.random:
            text += f", {len(self.random)} start at random"
        if self.unused:
            text += f"; {len(self.unused)} of the file have no place in the network"
        return text


def read_weights_file(path: Path) -> Source:
    """Read a ``.safetensors`` file.

    Raises:
        WeightsError: It is missing, no safetensors, or holds a value that is no number.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(
            "weights_missing",
            f"there is no file {path.name}",
            file=path.name,
            hint="GET /weights lists what is there; `hairline weights import` adds one",
        ) from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            "weights_unreadable",
            f"{path.name} can't be read as safetensors: {error}",
            file=path.name,
            hint="convert a checkpoint with `hairline weights import`",
        ) from error
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        raise WeightsError(
            "weights_not_finite",
            f"{path.name} holds infinite values or no numbers in {_some(broken)}",
            file=path.name,
            hint="take the checkpoint of a training that did not diverge",
        )
    return Source(path.name, file_sha256(path), tensors)


def read_bundle_source(path: Path) -> Source:
    """Read an earlier model's weights.

    Raises:
        BundleError: If the bundle is missing or damaged.
    """
    info = read_bundle_info(path)
    return Source(path.name, info.weights_sha256, read_bundle_weights(path, info), info.classes)


def load_weights(
    network: nn.Module, architecture: Architecture, source: Source, classes: Sequence[str]
) -> WeightsReport:
    """Give a network what a source has for it, in place, and account for every tensor.

    An encoder is taken whole or not at all.  Its first convolution is fitted to the frames'
    channels: colour to mono by summing over the channels, mono to colour by a third in each; either
    way a grey frame gives the same answer as before.  Rows of the head go by the classes' names.

    Args:
        network: Plain, as it is built: not yet converted to another normalization.
        architecture: The network's.
        source: The weights.
        classes: The network's, in the order of its head's rows.

    Raises:
        WeightsError: The source is of another encoder; the network is unchanged.
    """
    targets: dict[str, Tensor] = network.state_dict()
    taken, report = match_weights(targets, architecture, source, classes)
    network.load_state_dict(targets | taken)
    return report


def match_weights(
    targets: Mapping[str, Tensor],
    architecture: Architecture,
    source: Source,
    classes: Sequence[str],
) -> tuple[dict[str, Tensor], WeightsReport]:
    """Return what a network's tensors become, for those that the source has, and the account.

    Args:
        targets: The network's state, which may be without memory (device ``meta``).
        architecture: The network's.
        source: The weights.
        classes: The network's.

    Raises:
        WeightsError: The source is of another encoder.
    """
    names = _names_in(source.tensors, targets, architecture.encoder_prefix)
    taken: dict[str, Tensor] = {}
    converted: dict[str, str] = {}
    random: dict[str, str] = {}
    for name, target in targets.items():
        found = source.tensors.get(names.get(name, ""))
        if found is None:
            random[name] = "not in the file"
            continue
        if name.startswith(architecture.head_prefix):
            value, remark = _fit_head(found, target, source.classes, classes)
        else:
            value, remark = _fit(found, target)
        if value is None:
            random[name] = remark
            continue
        taken[name] = value.to(target.dtype)
        if remark:
            converted[name] = remark
    _drop_half_a_head(architecture.head_prefix, taken, random)
    loaded = [name for name in taken if name not in converted]
    converted = {name: remark for name, remark in converted.items() if name in taken}
    used = {names[name] for name in taken}
    unused = tuple(name for name in source.tensors if name not in used)
    _check_encoder(source, architecture, targets, random)
    _check_blocks(source, used, unused)
    return taken, WeightsReport(
        source.name, source.sha256, tuple(loaded), converted, random, unused
    )


def _names_in(
    tensors: Mapping[str, Any], targets: Mapping[str, Any], encoder_prefix: str
) -> dict[str, str]:
    """Return each target's name in the file, under the spelling that fits most of them."""
    spellings: tuple[Callable[[str], str], ...] = (
        lambda name: name,
        lambda name: encoder_prefix + name,
        # timm's networks sit one level deeper, and those cut up for features join stage and number.
        lambda name: f"{encoder_prefix}model.{name}",
        lambda name: (
            f"{encoder_prefix}model." + re.sub(r"^(stem|stages)\.(\d+)\.", r"\1_\2.", name)
        ),
    )
    by_spelling = [{spell(name): name for name in tensors} for spell in spellings]
    best = max(by_spelling, key=lambda names: len(names.keys() & targets.keys()))
    return {name: best[name] for name in targets if name in best}


def _fit(found: Tensor, target: Tensor) -> tuple[Tensor | None, str]:
    """Return a tensor of the target's shape and what was done, or None and why there is none."""
    if found.shape == target.shape:
        return found, ""
    if found.ndim == target.ndim == 4 and found[:, :1].shape == target[:, :1].shape:
        channels = (found.shape[1], target.shape[1])
        if channels == (3, 1):
            return found.sum(1, keepdim=True), "summed over three channels for mono frames"
        if channels == (1, 3):
            return found.expand_as(target) / 3, "a third in each channel for colour frames"
    return None, f"its shape is {tuple(found.shape)} there, {tuple(target.shape)} here"


def _fit_head(
    found: Tensor, target: Tensor, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[Tensor | None, str]:
    """Return the head's rows for our classes, those of new classes as they were."""
    if not theirs:
        return None, "the file does not say which classes its head is of"
    common = [name for name in ours if name in theirs]
    fits = found.shape[0] == len(theirs) and target.shape[0] == len(ours)
    if not fits or found.shape[1:] != target.shape[1:]:
        return None, f"its shape is {tuple(found.shape)} there, {tuple(target.shape)} here"
    if not common:
        return None, "the earlier model knows none of the classes"
    if tuple(theirs) == tuple(ours):
        return found, ""
    value = target.clone()
    for name in common:
        value[ours.index(name)] = found[theirs.index(name)].to(target.dtype)
    return value, f"rows of {', '.join(common)} taken by name"


def _drop_half_a_head(prefix: str, taken: dict[str, Tensor], random: dict[str, str]) -> None:
    """Take a head whole or not at all: the biases of other features are worse than none."""
    if not any(name.startswith(prefix) for name in random):
        return
    for name in [name for name in taken if name.startswith(prefix)]:
        del taken[name]
        random[name] = "the rest of the head is not taken"


def _check_encoder(
    source: Source,
    architecture: Architecture,
    targets: Mapping[str, Tensor],
    random: Mapping[str, str],
) -> None:
    prefix = architecture.encoder_prefix
    encoder = [name for name in targets if name.startswith(prefix)]
    missing = [
        f"{name} ({random[name]})"
        for name in encoder
        if name in random and name.rpartition(".")[2] not in _STATISTICS
    ]
    if not missing:
        return
    matched = len(encoder) - sum(name in random for name in encoder)
    raise WeightsError(
        "weights_match_nothing" if matched == 0 else "weights_of_another_encoder",
        f"{source.name} has {matched} of the encoder's {len(encoder)} tensors; it lacks "
        f"{_some(missing)}",
        file=source.name,
        hint="choose the model.encoder (and encoder_depth) that the weights are of; docs/models.md "
        "lists whose checkpoints fit which encoder",
    )


def _check_blocks(source: Source, used: set[str], unused: Sequence[str]) -> None:
    """Refuse a stage of which the network has fewer blocks: half of a ResNet-34 is no ResNet-18."""
    stages = {match[0] for match in map(_BLOCK.search, used) if match}
    more = [name for name in unused if (match := _BLOCK.search(name)) and match[0] in stages]
    if more:
        raise WeightsError(
            "weights_of_another_encoder",
            f"{source.name} has more blocks than the encoder, such as {_some(more)}",
            file=source.name,
            hint="choose the model.encoder that the weights are of",
        )


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
