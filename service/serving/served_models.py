"""Models with the engine that was chosen for them, and those that get one while they serve."""

import logging
import threading
import weakref
from typing import Any

import numpy as np
import psutil
import torch

from models import (
    EngineError,
    FrozenDetector,
    FrozenModel,
    Pixels,
    freeze_bundle,
    load_bundle,
)
from models.cuda_graphs import release_cached_memory
from models.engine_preparation import torch_engine
from models.engine_record import (
    RECORD_NAME,
    EngineRecord,
    Machine,
    check_usable,
    load_exported,
    read_record,
)
from models.engines import REFERENCE_ENGINE, Engine
from service.serving.frame_queue import largest_batch
from service.storage import Storage

logger = logging.getLogger(__name__)

_POLL_S = 1.0
# Of what is free when a model is loaded: frames that wait and a training beside it want some too.
_MEMORY_SHARE = 0.8
_FIRST_SIZE = (512, 512)


class ServedModels:
    """Loads models with their engines, and gives those in use a new engine when one gets ready.

    A new engine is loaded and warmed beside the frames and put in place between two of them: a
    frame is answered by one engine alone.

    Args:
        storage: Where bundles and exports are.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Side effects: starts a thread; `close` ends it.
    """

    def __init__(self, storage: Storage, device: str) -> None:
        self._storage = storage
        self._device = device
        self._guard = threading.Lock()
        # Guarded by ``_guard``: what was last seen of each model's record.
        self._seen: dict[str, int | None] = {}
        self._models: weakref.WeakValueDictionary[str, FrozenModel] = weakref.WeakValueDictionary()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="engines", daemon=True)
        self._thread.start()

    def load(self, model_id: str) -> FrozenModel | FrozenDetector:
        """Load a model, with the engine that was chosen for it on this machine.

        Raises:
            BundleError: Its bundle is missing or damaged.
        """
        model = freeze_bundle(load_bundle(self._storage.bundle_dir(model_id)), self._device)
        if isinstance(model, FrozenModel):
            model.memory_bytes = _MEMORY_SHARE * free_memory_bytes(model.device)
            if model.device.type == "cuda":
                # The first frame of a GPU loads libraries and kernels, and is none of the line's.
                model.probabilities(_blank(model, _FIRST_SIZE))
            seen = self._record_time(model_id)
            self._engage(model_id, model)
            with self._guard:
                self._seen[model_id] = seen
                self._models[model_id] = model
        return model

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            with self._guard:
                watched = [
                    (model_id, model, self._seen[model_id])
                    for model_id, model in self._models.items()
                ]
            for model_id, model, before in watched:
                seen = self._record_time(model_id)
                if seen == before:
                    continue
                try:
                    self._engage(model_id, model)
                except Exception:
                    # The edge of the thread: the model goes on with the engine it has.
                    logger.exception("%s: its new engine can't be used", model_id)
                with self._guard:
                    self._seen[model_id] = seen

    def _record_time(self, model_id: str) -> int | None:
        try:
            return (self._storage.exports_dir(model_id) / RECORD_NAME).stat().st_mtime_ns
        except OSError:
            return None

    def _engage(self, model_id: str, model: FrozenModel) -> None:
        """Let a model use the engine chosen for it, or torch, with the reason in each answer."""
        try:
            engine = self._chosen_engine(model_id, model)
        except EngineError as error:
            logger.warning("%s: %s serves it: %s", model_id, REFERENCE_ENGINE, error.detail)
            notes = (f"{REFERENCE_ENGINE} answers, not the engine chosen for it: {error.detail}",)
            model.use(model.reference, notes)
            return
        model.use(engine)
        # What the reference took for activations is nobody's now, and a training may want it.
        release_cached_memory(model.device)
        logger.info("%s: %s serves it", model_id, engine.name)

    def _chosen_engine(self, model_id: str, model: FrozenModel) -> Engine:
        folder = self._storage.exports_dir(model_id)
        record = read_record(folder)
        if record is None:
            return model.reference
        check_usable(record, model.info, Machine.here(model.device))
        if record.chosen == REFERENCE_ENGINE:
            return model.reference
        if record.chosen == model.engine.name and record.chosen.startswith("torch"):
            # Nothing was exported for it, so it is the one that is compared again.
            return model.engine
        if record.chosen.startswith("torch"):
            engine: Engine = torch_engine(model, record.chosen)
        else:
            engine = load_exported(folder, record, record.chosen)
        _warm_up(engine, model, record)
        return engine


def free_memory_bytes(device: torch.device) -> int:
    """Return how much memory a forward on this device could still take."""
    if device.type == "cuda":
        release_cached_memory(device)
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(free_bytes)
    return int(psutil.virtual_memory().available)


def _warm_up(engine: Engine, model: FrozenModel, record: EngineRecord) -> None:
    """Let an engine allocate and choose for the frames of its line before the first one comes.

    An engine keeps what its largest batch took, and kernels for each size of a batch.  Which come
    is chance, and some come hours after the start maybe: memory is taken for all of them here,
    before the line relies on the engine.
    """
    height, width = record.frame_size
    for count in range(largest_batch(height * width), 0, -1):
        model.warm_up(engine, _blank(model, record.frame_size), count)


def _blank(model: FrozenModel, size: tuple[int, int]) -> Pixels:
    preprocessing = model.info.preprocessing
    dtype = np.uint8 if preprocessing.bit_depth == 8 else np.uint16
    blank: Any = np.zeros((*size, preprocessing.in_channels), dtype)
    return np.asarray(blank)
