"""Models at work: one thread owns the device and keeps the models in use warm."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from models import BundleInfo, FrozenModel, Inspection, Pixels, load_bundle, read_bundle_info
from service.errors import NotReady
from service.storage import Storage

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Weights take tens of megabytes, the activations of one frame of 5 megapixels gigabytes, so memory
# is decided by the one forward at a time; this only bounds a long life with many models.
_WARM_MODELS = 3
# Each waiting frame holds its pixels, up to 600 MB at the pixel limit.
_WAITING_FRAMES = 16


class InferenceEngine:
    """Loads bundles and looks at frames, one at a time, in a thread of its own.

    Args:
        storage: Where bundles are.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
    """

    def __init__(self, storage: Storage, device: str) -> None:
        self._storage = storage
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._places = threading.BoundedSemaphore(_WAITING_FRAMES)
        # What the last frame took: a place is free again after about as long.
        self._frame_s = 1.0
        # Touched by the inference thread alone.
        self._warm: OrderedDict[str, FrozenModel] = OrderedDict()

    def warm(self, model_id: str) -> BundleInfo:
        """Load a model if it is not loaded, and return what it is.

        Raises:
            BundleError: Its bundle is missing or damaged.
        """
        return self._thread.submit(lambda: self._model(model_id).info).result()

    def describe(self, model_id: str) -> BundleInfo:
        """Return what a model is, without loading it or waiting for the device.

        Raises:
            BundleError: Its description is missing or damaged.
        """
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

        def look() -> tuple[BundleInfo, Inspection]:
            model = self._model(model_id)
            begin = time.perf_counter()
            inspection = model.inspect(pixels)
            self._frame_s = time.perf_counter() - begin
            return model.info, inspection

        future = self._submit(look)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def close(self) -> None:
        """Finish the frame under way and let go of the models."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._warm.clear()

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if not self._places.acquire(blocking=False):
            raise NotReady(
                "inference_busy",
                f"{_WAITING_FRAMES} frames are waiting already",
                hint="send frames no faster than the model answers, or add a machine",
                retry_after_s=self._frame_s,
            )
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._places.release())
        return future

    def _model(self, model_id: str) -> FrozenModel:
        if model_id in self._warm:
            self._warm.move_to_end(model_id)
            return self._warm[model_id]
        logger.info("%s: loading", model_id)
        model = FrozenModel(load_bundle(self._storage.bundle_dir(model_id)), self._device)
        self._warm[model_id] = model
        while len(self._warm) > _WARM_MODELS:
            evicted, _ = self._warm.popitem(last=False)
            logger.info("%s: unloaded", evicted)
        return model
