"""What a run under load does: how many clients, for how long, over which models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.serve.trained_models import Recipe


@dataclass(frozen=True)
class LoadPlan:
    """What a run does.

    Attributes:
        recipes: Of the models, which take turns.
        frames: How many different ones are sent.
        width_px: Of them.
        height_px: The same.
        clients: That send at once.
        seconds: For how long.
        swap_every_s: From one swap to the next; halfway one is a rollback.
        deadline_ms: Of each request.
        margin_ms: An answer that comes later than deadline and margin is late.
        tolerance: Of a pixel's logit, between processes that run one engine in float32.
        coarse_tolerance: The same in bfloat16 or 8 bits, where frames that are looked at together
            are rounded elsewhere than each alone.
        has_engines: Whether the fastest engine is chosen for each model before; else torch serves.
    """

    recipes: tuple[Recipe, ...]
    frames: int
    width_px: int
    height_px: int
    clients: int = 8
    seconds: float = 600.0
    swap_every_s: float = 20.0
    deadline_ms: float = 20_000.0
    margin_ms: float = 500.0
    tolerance: float = 1e-3
    coarse_tolerance: float = 5e-2
    has_engines: bool = True


def _recipes(
    frames: int, width_px: int, height_px: int, steps: int, networks: Sequence[dict[str, Any]]
) -> tuple[Recipe, ...]:
    return tuple(
        Recipe(
            f"load {number}",
            frames,
            width_px,
            height_px,
            steps,
            {"model": network, "seed": number, "augmentation": {"flips": False}},
        )
        for number, network in enumerate(networks)
    )


_RESNET: dict[str, Any] = {
    "encoder": "resnet18",
    "encoder_depth": 3,
    "decoder_channels": [16, 8, 8],
}
_MOBILENET: dict[str, Any] = {
    "encoder": "mobilenet_v3_small",
    "encoder_depth": 3,
    "decoder_channels": [16, 8, 8],
}
FULL = LoadPlan(_recipes(40, 448, 352, 120, [_RESNET, _RESNET, _MOBILENET]), 24, 448, 352)
QUICK = replace(
    FULL,
    recipes=_recipes(8, 160, 128, 40, [_MOBILENET, _MOBILENET]),
    frames=12,
    width_px=160,
    height_px=128,
    seconds=30.0,
    has_engines=False,
    swap_every_s=3.0,
)
