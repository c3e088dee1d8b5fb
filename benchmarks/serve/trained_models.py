"""Models that the service itself has trained on drawn frames, and that stay in its storage."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.flaws import CLASSES
from data.synthetic import write_dataset
from service.client import HairlineClient

# All frames, those to learn from and those to inspect, show parts of one product.
PRODUCT_SEED = 1
_GOOD_RATE = 0.25
_UPLOAD_BATCH = 40
_TRAINED = "trained.json"
# A warm light on a grey sensor: channels differ, and none is a copy of another.
_TINT = (1.0, 0.96, 0.9)


@dataclass(frozen=True)
class Recipe:
    """What a model learns from, and for how long.

    Attributes:
        name: For the page.
        frames: How many are drawn.
        width_px: Of each.
        height_px: Of each.
        steps: Optimizer steps.
        job: Other fields of ``POST /jobs``.
        is_colour: Whether the frames are in RGB.
    """

    name: str
    frames: int
    width_px: int
    height_px: int
    steps: int
    job: dict[str, Any]
    is_colour: bool = False

    @property
    def digest(self) -> str:
        """Of everything that decides the weights but the code."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def in_colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mono frame (H, W) under a warm light, (H, W, 3) RGB."""
    return np.asarray(pixels[:, :, None] * np.array(_TINT), np.uint8)


def known_model(recipe: Recipe, work: Path) -> str | None:
    """Return the id of the model that a recipe made before; None if it did not yet."""
    notes = work / _TRAINED
    trained: dict[str, str] = json.loads(notes.read_text()) if notes.exists() else {}
    return trained.get(recipe.digest)


def trained_model(client: HairlineClient, recipe: Recipe, work: Path) -> str:
    """Return the id of the model that a recipe makes; it is trained by a job unless it was before.

    Side effects: draws frames into ``work``, and notes there which models were trained.

    Raises:
        RuntimeError: The job did not succeed.
    """
    known = known_model(recipe, work)
    if known is not None:
        return known
    folder = _drawn(recipe, work)
    files = sorted(path for path in folder.rglob("*.png"))
    dataset = client.create_dataset(f"{recipe.name} {recipe.digest[:8]}", classes=CLASSES)
    for start in range(0, len(files), _UPLOAD_BATCH):
        batch = files[start : start + _UPLOAD_BATCH]
        client.upload(dataset.id, [(path.relative_to(folder).as_posix(), path) for path in batch])
    version = client.freeze(dataset.id, split={"group_pattern": r"(part_\d+)"})
    # An epoch has one step at least.
    budget = {"max_steps": recipe.steps, "max_epochs": recipe.steps}
    wishes = {"early_stopping": None, "budget": budget, **recipe.job}
    job = client.wait_for_job(client.create_job(version.id, **wishes).id, poll_s=0.2)
    if job.model is None:
        raise RuntimeError(f"{recipe.name} was not trained: {job.error}")
    notes = work / _TRAINED
    others = json.loads(notes.read_text()) if notes.exists() else {}
    notes.write_text(json.dumps({**others, recipe.digest: job.model}, indent=1) + "\n")
    return job.model


def prepared_engine(client: HairlineClient, model_id: str) -> str:
    """Return the engine that serves a model, chosen on this machine unless it was before.

    Raises:
        RuntimeError: Its engines could not be prepared.
    """
    found = client.engines(model_id)
    if found.chosen is None or found.unusable is not None:
        client.prepare_engines(model_id)
        found = client.wait_for_engines(model_id)
    if found.chosen is None:
        raise RuntimeError(f"the engines of {model_id} were not prepared: {found.error}")
    return found.chosen


def _drawn(recipe: Recipe, work: Path) -> Path:
    kind = "colour" if recipe.is_colour else "mono"
    folder = work / f"{recipe.frames}-{recipe.width_px}x{recipe.height_px}-{kind}"
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    names = write_dataset(
        partial,
        count=recipe.frames,
        good_rate=_GOOD_RATE,
        seed=1,
        width_px=recipe.width_px,
        height_px=recipe.height_px,
        product_seed=PRODUCT_SEED,
    )
    if recipe.is_colour:
        for name in names:
            mono = cv2.imread(str(partial / name), cv2.IMREAD_UNCHANGED)
            assert mono is not None
            cv2.imwrite(str(partial / name), in_colour(np.asarray(mono, np.uint8))[:, :, ::-1])
    partial.rename(folder)
    return folder
