"""Naming the normalization layers of a model that are no batch normalization of torch's.

Where a class belongs to another library it is recognised by its name, because this room needs torch
alone. A normalization that is a function call and no module cannot be seen.
"""

import re
from typing import NamedTuple

from torch import nn

from .substitute import FUSED_TAIL, GroupNorm2d

_OF_THE_IMAGE = "normalizes each image by itself, so the size of the batch does not matter to it"
_OF_TORCH: tuple[tuple[str, str, str], ...] = (
    ("GroupNorm", "gn", _OF_THE_IMAGE),
    ("LayerNorm", "ln", _OF_THE_IMAGE),
    ("RMSNorm", "rms", _OF_THE_IMAGE),
    ("_InstanceNorm", "in", _OF_THE_IMAGE),
    ("LocalResponseNorm", "lrn", "divides each value by its neighbours and keeps no statistics"),
    ("CrossMapLRN2d", "lrn", "divides each value by its neighbours and keeps no statistics"),
)
# These kinds have nothing to gain from another: no statistic of theirs is the batch's.
PER_IMAGE_KINDS = frozenset(kind for _, kind, _ in _OF_TORCH)
# How the libraries that freeze batch normalizations give them back.
_FROZEN: tuple[tuple[str, str], ...] = (
    ("FrozenBatchNormAct2d", "give it back with timm.layers.unfreeze_batch_norm_2d to train them"),
    ("FrozenBatchNorm2d", "build the model with norm_layer=nn.BatchNorm2d to train them"),
)
# "Norm" within "Normalize" is a step of the preprocessing, and norms of weights are no layers.
_NORM = re.compile(r"Norm(?!al)")


class OtherNormalization(NamedTuple):
    """A short name of what a layer is, and why it is left as it is."""

    kind: str
    reason: str


def other_normalization(name: str, module: nn.Module) -> OtherNormalization | None:
    """Say what `module` is if it normalizes activations and is no _BatchNorm, else None.

    Args:
        name: Its name in the model.
        module: A module that is no _BatchNorm.
    """
    if "parametrizations" in name.split("."):
        return None
    if isinstance(module, GroupNorm2d):
        return OtherNormalization(
            "gn", "it was converted to group normalization, which has no running statistics to use"
        )
    own = type(module).__name__
    ancestors = [kind.__name__ for kind in type(module).__mro__]
    for frozen, remedy in _FROZEN:
        if frozen in ancestors:
            return OtherNormalization(
                "frozen", f"the statistics of {own} are frozen already: {remedy}"
            )
    for ancestor, kind, reason in _OF_TORCH:
        if ancestor in ancestors:
            return OtherNormalization(kind, f"{own} {reason}")
    # A block of convolution and normalization has children of its own, which are looked at alone.
    parts = {child for child, _ in module.named_children()}
    if _NORM.search(own) and parts <= set(FUSED_TAIL):
        return OtherNormalization(own, f"{own} is known by its name only, not by what it computes")
    return None
