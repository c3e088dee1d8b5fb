"""Models at work: one thread owns the device and keeps the models in use warm."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from models import (
    BundleInfo,
    FrozenDetector,
    FrozenModel,
    Inspection,
    Pixels,
    read_bundle_info,
)
from service.serving.frame_queue import FrameQueue, Inspected, WaitingFrame
from service.serving.served_models import ServedModels
from service.storage import Storage

logger = logging.getLogger(__name__)

# Weights take tens of megabytes, the activations of one frame of 5 megapixels gigabytes, so memory
# is decided by the one forward at a time; this only bounds a long life with many models.
_WARM_MODELS = 8


class InferenceEngine:
    """Loads bundles and looks at frames, in a thread of its own that no other work goes through.

    A model is loaded by whoever asks to have it warm, beside the frames of other models, so that a
    line meets its deadlines while the next model is being deployed.

    Args:
        storage: Where bundles are.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        queue: Of the frames that wait.

    Attributes:
        on_first_load: Called when the first model is loaded, with all libraries that models need
            and before any frame.

    Side effects: starts a thread; `close` ends it.
    """

    # How many models stay loaded.
    capacity = _WARM_MODELS

    def __init__(self, storage: Storage, device: str, queue: FrameQueue | None = None) -> None:
        self._storage = storage
        self._models = ServedModels(storage, device)
        self.queue = queue or FrameQueue()
        self.on_first_load: Callable[[], object] = lambda: None
        self._has_loaded = False
        self._loading = threading.Lock()
        self._guard = threading.Lock()
        # Guarded by ``_guard``.
        self._warm: OrderedDict[str, FrozenModel | FrozenDetector] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def warm(self, model_id: str) -> BundleInfo:
        """Load a model if it is not loaded, and return what it is.

        Raises:
            BundleError: Its bundle is missing or damaged.
        """
        return self._model(model_id).info

    def describe(self, model_id: str) -> BundleInfo:
        """Return what a model is, without loading it or waiting for the device.

        Raises:
            BundleError: Its description is missing or damaged.
        """
        loaded = self._loaded(model_id)
        if loaded is not None:
            return loaded.info
        return read_bundle_info(self._storage.bundle_dir(model_id))

    def inspect(
        self, model_id: str, pixels: Pixels, timeout_s: float | None = None
    ) -> tuple[BundleInfo, Inspection]:
        """Look at one frame and return the model's description and what it says.

        Raises:
            BundleError: The model's bundle is missing or damaged.
            FrameError: The frame does not suit the model.
            NotReady: Too many frames are waiting.
            TimeoutError: There is no answer after ``timeout_s`` seconds.
        """
        deadline_s = None if timeout_s is None else time.perf_counter() + timeout_s
        (frame,) = self.queue.admit(model_id, "", deadline_s)
        try:
            self.queue.put(frame, pixels)
            inspected = frame.outcome.result(timeout_s)
        finally:
            self.queue.leave(frame)
        return inspected.info, inspected.inspection

    def close(self) -> None:
        """Finish the frame under way and let go of the models."""
        self.queue.close()
        self._thread.join()
        self._models.close()
        self._warm.clear()

    def _work(self) -> None:
        while batch := self.queue.take():
            try:
                self._look_at(batch)
            except Exception as error:  # noqa: BLE001 - the device's thread outlives every frame.
                for frame in batch:
                    _fail(frame, error)
            # Held until the next frame comes, its probabilities, 60 MB, would be given back while
            # that one waits.
            del batch

    def _look_at(self, batch: Sequence[WaitingFrame]) -> None:
        """Give each frame of a batch its outcome."""
        model = self._model(batch[0].model_id)
        if len(batch) > 1 and isinstance(model, FrozenModel):
            self._look_at_together(model, batch)
            return
        for frame in batch:
            assert frame.pixels is not None  # The queue hands out no others.
            begin_s = time.perf_counter()
            try:
                inspection = model.inspect(frame.pixels)
            except Exception as error:  # noqa: BLE001 - it belongs to this frame alone.
                _fail(frame, error)
                continue
            self.queue.record_duration(frame.kind, time.perf_counter() - begin_s)
            _answer(frame, model.info, inspection, begin_s)

    def _look_at_together(self, model: FrozenModel, batch: Sequence[WaitingFrame]) -> None:
        begin_s = time.perf_counter()
        outcomes = model.inspect_together(
            [frame.pixels for frame in batch if frame.pixels is not None]
        )
        self.queue.record_duration(batch[0].kind, (time.perf_counter() - begin_s) / len(batch))
        for frame, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Inspection):
                _answer(frame, model.info, outcome, begin_s)
            else:
                _fail(frame, outcome)

    def _loaded(self, model_id: str) -> FrozenModel | FrozenDetector | None:
        with self._guard:
            model = self._warm.get(model_id)
            if model is not None:
                self._warm.move_to_end(model_id)
            return model

    def _model(self, model_id: str) -> FrozenModel | FrozenDetector:
        loaded = self._loaded(model_id)
        if loaded is not None:
            return loaded
        with self._loading:
            # Somebody else may have loaded it meanwhile.
            loaded = self._loaded(model_id)
            if loaded is not None:
                return loaded
            logger.info("%s: loading", model_id)
            model = self._models.load(model_id)
            if not self._has_loaded:
                self._has_loaded = True
                self.on_first_load()
        with self._guard:
            self._warm[model_id] = model
            while len(self._warm) > _WARM_MODELS:
                evicted, _ = self._warm.popitem(last=False)
                logger.info("%s: unloaded", evicted)
        return model


def _answer(frame: WaitingFrame, info: BundleInfo, inspection: Inspection, begin_s: float) -> None:
    frame.outcome.set_result(Inspected(info, inspection, queue_s=begin_s - frame.put_at_s))


def _fail(frame: WaitingFrame, error: Exception) -> None:
    if not frame.outcome.done():
        frame.outcome.set_exception(error)
