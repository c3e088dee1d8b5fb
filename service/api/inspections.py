"""From a request's frames to answers: never late, and never an OK that nobody gave.

Everything up to the verdict runs against the deadline, the arrival of the body included. When it
passes, what is known of each frame by then is its answer, under the verdict ``NOT_INSPECTED``.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from models import BundleInfo, Inspection
from service.api.frame_threads import FrameThreads
from service.errors import InvalidRequest, NotReady
from service.resources import (
    ClassMask,
    DefectResource,
    PredictedBy,
    PredictedImage,
    Prediction,
    Verdict,
)
from service.serving.deployments import Served
from service.serving.frame_queue import Inspected, NotInspected, WaitingFrame
from service.serving.inference import InferenceEngine
from service.serving.mark import ServingMark
from service.serving.metrics import ServingMetrics
from service.serving.pictures import Picture, draw, drawable, run_lengths
from service.serving.uploaded_frame import UploadedFrame

T = TypeVar("T")
ReadFrames = Callable[[Request], Awaitable[list[UploadedFrame]]]

_TOO_LATE = "the deadline passed before the frame was inspected"


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    Attributes:
        served: Who is asked, with all that goes with the model, read at the request's beginning.
        request_id: Of the request.
        begin_s: When the request's head had arrived, on the clock of `time.perf_counter`.
        deadline_s: When an answer is of no use any more, on the same clock.
        pictures: To be drawn.
        run_lengths: Whether masks are wanted as run lengths.
        part_id: The part that the frames show.
    """

    served: Served
    request_id: str
    begin_s: float
    deadline_s: float | None = None
    pictures: tuple[Picture, ...] = ()
    run_lengths: bool = False
    part_id: str | None = None

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline_s is not None and time.perf_counter() > self.deadline_s


@dataclass
class Draft:
    """What is known of one frame so far.

    Attributes:
        upload: The frame as it came; None while it has not arrived.
        size: Height and width, once it is decoded.
        sha256: Of what was sent.
        notes: What was converted or left out.
        timings_ms: Of the steps done.
        why_not: Why there is no verdict, if there is none in the end.
        inspected: What the model said.
        drawn: Pictures and masks asked for.
    """

    upload: UploadedFrame | None = None
    size: tuple[int, int] | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    why_not: str = _TOO_LATE
    inspected: Inspected | None = None
    drawn: "Drawn | None" = None


@dataclass(frozen=True)
class Drawn:
    """What was drawn of a frame: PNG files in base64, and masks as run lengths."""

    pictures: dict[str, str] = field(default_factory=dict)
    masks: dict[str, ClassMask] | None = None


class FrameInspections:
    """Takes requests' frames through decoding, the model and drawing.

    Args:
        inference: The engine that owns the device.
        threads: For everything else.
        metrics: Counts requests that end without an answer.
        serving: Tells training of each frame.
    """

    def __init__(
        self,
        inference: InferenceEngine,
        threads: FrameThreads,
        metrics: ServingMetrics,
        serving: ServingMark,
    ) -> None:
        self._inference = inference
        self._threads = threads
        self._metrics = metrics
        self._serving = serving

    async def inspect(
        self, request: Request, wish: Wish, model: BundleInfo, read: ReadFrames
    ) -> list[Draft]:
        """Return what is known of each frame by the deadline; all of it if there is none.

        Nothing is returned if not even the body had arrived by then.

        Args:
            request: Its body is read here.
            wish: What it asks for.
            model: The one asked for, as its bundle describes it.
            read: Reads the frames out of the body.

        Raises:
            ClientDisconnect: Nobody waits for the answer any more.
            DataError: A frame can't be read.
            ModelsError: A frame does not suit the model, or the model failed.
            ServiceError: The body can't be meant as it is, or too many frames wait.
        """
        check_drawable(wish, model)
        drafts: list[Draft] = []
        timer = _until(wish.deadline_s)
        try:
            async with timer:
                drafts += [Draft(upload) for upload in await read(request)]
                await _unless_gone(request, self._inspect_all(request, wish, model, drafts))
        except TimeoutError:
            if not timer.expired():
                raise
        except ClientDisconnect:
            self._metrics.count_gone()
            raise
        return drafts

    async def _inspect_all(
        self, request: Request, wish: Wish, model: BundleInfo, drafts: Sequence[Draft]
    ) -> None:
        queue = self._inference.queue
        client = request.client.host if request.client else ""
        try:
            places = queue.admit(wish.served.model_id, client, wish.deadline_s, len(drafts))
        except NotReady as error:
            self._metrics.count_refused(error.code)
            raise
        try:
            frames = zip(drafts, places, strict=True)
            await asyncio.gather(*(self._inspect_one(wish, model, *frame) for frame in frames))
        finally:
            # Whoever ends here early, cancelled or refused, makes room at once.
            for place in places:
                queue.leave(place)

    async def _inspect_one(
        self, wish: Wish, model: BundleInfo, draft: Draft, place: WaitingFrame
    ) -> None:
        pixels = await self._threads.picture(lambda: self._take_in(model, draft, place))
        try:
            inspected = await asyncio.wrap_future(place.outcome)
        except NotInspected as error:
            draft.why_not = str(error)
            return
        if wish.pictures or wish.run_lengths:
            draft.drawn = await self._threads.picture(
                lambda: _draw(wish, pixels, inspected.info, inspected.inspection)
            )
        else:
            draft.drawn = Drawn()
        draft.inspected = inspected

    def _take_in(self, model: BundleInfo, draft: Draft, place: WaitingFrame) -> Any:
        """Decode a frame, let it wait for the device, and return its pixels."""
        assert draft.upload is not None
        begin_s = time.perf_counter()
        decoded = draft.upload.decode(model.preprocessing.bayer)
        draft.timings_ms["decode"] = 1000 * (time.perf_counter() - begin_s)
        draft.notes = decoded.notes
        draft.size = (decoded.pixels.shape[0], decoded.pixels.shape[1])
        self._serving.touch()
        self._inference.queue.put(place, decoded.pixels)
        # The device is at work meanwhile.
        draft.sha256 = hashlib.sha256(draft.upload.raw).hexdigest()
        return decoded.pixels


def check_drawable(wish: Wish, info: BundleInfo) -> None:
    """Refuse pictures that this kind of model has nothing for.

    Raises:
        InvalidRequest: It names the first one and what can be asked for instead.
    """
    possible = drawable(info)
    wanted = (*wish.pictures, *(["rle"] if wish.run_lengths else []))
    for name in wanted:
        if name not in possible and not (name == "rle" and "mask" in possible):
            raise InvalidRequest(
                "picture_not_available",
                f"the model answers with boxes, not with pixels: there is no {name} to draw",
                where="query/include",
                hint=f"include={','.join(possible)} draws what it found",
            )


def prediction_of(draft: Draft, wish: Wish) -> Prediction:
    """Return a frame's answer; one that is late, or was given up, is ``NOT_INSPECTED``."""
    inspected = None if wish.is_late else draft.inspected
    timings_ms = dict(draft.timings_ms)
    if inspected is not None:
        timings_ms |= {"queue": 1000 * inspected.queue_s, **inspected.inspection.timings_ms}
    timings_ms["total"] = 1000 * (time.perf_counter() - wish.begin_s)
    height, width = draft.size or (None, None)
    drawn = draft.drawn if inspected is not None and draft.drawn is not None else Drawn()
    verdict: Verdict = "NOT_INSPECTED" if inspected is None else inspected.inspection.verdict
    notes = (draft.why_not,) if inspected is None else inspected.inspection.notes
    return Prediction(
        verdict=verdict,
        defects=() if inspected is None else _defects(inspected.inspection),
        image=PredictedImage(
            name=None if draft.upload is None else draft.upload.name,
            width=width,
            height=height,
            sha256=draft.sha256,
        ),
        model=PredictedBy(
            id=wish.served.model_id,
            deployment=wish.served.deployment,
            operating_point={}
            if inspected is None
            else inspected.info.operating_point.model_dump(mode="json"),
            engine=None if inspected is None else inspected.inspection.engine,
        ),
        timings_ms=timings_ms,
        warnings=(*draft.notes, *notes, *wish.served.warnings),
        pictures=drawn.pictures,
        masks=drawn.masks,
        part_id=wish.part_id,
        request_id=wish.request_id,
    )


def _defects(inspection: Inspection) -> tuple[DefectResource, ...]:
    # Not validated: these are our own numbers, of outlines of thousands of points.
    return tuple(
        DefectResource.model_construct(
            class_name=defect.class_name,
            score=defect.score,
            box=defect.box,
            area_px=defect.area_px,
            polygon=defect.polygon,
        )
        for defect in inspection.defects
    )


def _draw(wish: Wish, pixels: Any, info: BundleInfo, inspection: Inspection) -> Drawn:
    files = draw(wish.pictures, pixels, info, inspection)
    masks = None
    if wish.run_lengths:
        assert inspection.probabilities is not None  # `check_drawable` has said so.
        masks = {
            name: ClassMask(size=size, counts=counts)
            for name, (size, counts) in run_lengths(info, inspection.probabilities).items()
        }
    return Drawn({name: base64.b64encode(png).decode() for name, png in files.items()}, masks)


def _until(deadline_s: float | None) -> asyncio.Timeout:
    """Return what cancels a block when the deadline passes, and then raises TimeoutError."""
    return asyncio.timeout(None if deadline_s is None else deadline_s - time.perf_counter())


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; end it if the client leaves before.

    Raises:
        ClientDisconnect: It has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until the client has left; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
