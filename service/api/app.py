"""The FastAPI application: its state, its middleware and its routers."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import metadata
from typing import Any

import anyio
from fastapi import FastAPI

from service.api import (
    comparisons,
    datasets,
    deployments,
    engines,
    health,
    imports,
    items,
    jobs,
    kept_frames,
    ledger,
    metrics,
    models,
    open_inference,
    operating_points,
    parts,
    predict,
    problems,
    reports,
    shadow,
    version_health,
    versions,
    weights,
)
from service.api.answers import Answers
from service.api.archive_pieces import ArchivePieces
from service.api.frame_threads import FrameThreads
from service.api.inspections import FrameInspections
from service.api.request_id import RequestIdMiddleware
from service.api.slow_bodies import SlowBodyMiddleware
from service.api.warm_start import WarmStart
from service.database import migrate
from service.database.engine import open_engine, session_factory
from service.datasets.imports import ABANDONED_AFTER_S
from service.datasets.measurements import FrameMeasurer
from service.datasets.picture_cache import PictureCache
from service.datasets.preview_store import PreviewStore
from service.ledger.journal import Retention
from service.ledger.recorder import PredictionRecorder
from service.serving.follow_up import FollowUp
from service.serving.inference import InferenceEngine
from service.serving.mark import ServingMark
from service.serving.metrics import ServingMetrics
from service.settings import Settings
from service.storage import Storage

# A decoded 16-bit colour frame at the pixel limit takes 600 MB; more uploads than this wait, and
# more previews that have to be drawn.
_PARALLEL_INGESTS = 2
_PARALLEL_PREVIEWS = 2


def create_app(settings: Settings) -> FastAPI:
    """Return the REST API of one installation.

    Side effects: creates the storage directory; migrates the database when the application starts.
    """
    app = FastAPI(
        title="Hairline",
        version=metadata.version("hairline"),
        summary="Training and inference for high-resolution industrial defect detection.",
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.storage = Storage(settings.storage_dir)
    app.state.engine = open_engine(settings)
    app.state.read_sessions = session_factory(app.state.engine, writes=False)
    app.state.write_sessions = session_factory(app.state.engine)
    app.state.inference = InferenceEngine(app.state.storage, settings.device)
    app.state.archive_pieces = ArchivePieces(app.state.engine, app.state.storage, settings)
    app.state.measurer = FrameMeasurer(app.state.engine, app.state.storage)
    app.state.ingest_limiter = anyio.CapacityLimiter(_PARALLEL_INGESTS)
    app.state.preview_limiter = anyio.CapacityLimiter(_PARALLEL_PREVIEWS)
    app.state.previews = _preview_store(app)
    app.state.recorder = _recorder(settings)
    _add_prediction(app)
    problems.install(app)
    app.add_middleware(SlowBodyMiddleware)
    app.add_middleware(RequestIdMiddleware)
    for router in (
        # Routes are tried in this order, and a line waits for its own.
        predict.router,
        parts.router,
        open_inference.router,
        datasets.router,
        items.router,
        imports.router,
        versions.router,
        version_health.router,
        jobs.router,
        comparisons.router,
        models.router,
        engines.router,
        operating_points.router,
        reports.router,
        weights.router,
        deployments.router,
        shadow.router,
        kept_frames.router,
        ledger.router,
        health.router,
        metrics.router,
    ):
        app.include_router(router)
    _describe_problems(app)
    return app


def _add_prediction(app: FastAPI) -> None:
    inference: InferenceEngine = app.state.inference
    app.state.warm_start = WarmStart(app.state.read_sessions, inference)
    app.state.metrics = ServingMetrics(lambda: len(inference.queue))
    app.state.frame_threads = FrameThreads()
    app.state.inspections = FrameInspections(
        inference,
        app.state.frame_threads,
        app.state.metrics,
        ServingMark(app.state.storage.serving_mark),
    )
    app.state.follow_up = FollowUp(
        app.state.engine, app.state.storage, inference, app.state.settings
    )
    app.state.answers = Answers(app.state.recorder, app.state.metrics, app.state.follow_up)


def _preview_store(app: FastAPI) -> PreviewStore:
    storage: Storage = app.state.storage
    max_bytes = app.state.settings.preview_cache_bytes
    cache = PictureCache(storage.root / "previews", storage.spool_dir, max_bytes)
    return PreviewStore(app.state.read_sessions, storage, cache)


def _describe_problems(app: FastAPI) -> None:
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        document = generate()
        if is_new:
            problems.describe(document)
        return document

    # FastAPI's documented way to extend the document is to replace this method.
    app.openapi = openapi  # type: ignore[method-assign]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(migrate.upgrade, app.state.engine)
    app.state.warm_start.start()
    await anyio.to_thread.run_sync(_clear_abandoned, app)
    await anyio.to_thread.run_sync(app.state.follow_up.keeper.prune_all)
    yield
    await anyio.to_thread.run_sync(app.state.warm_start.close)
    await anyio.to_thread.run_sync(app.state.measurer.close)
    await anyio.to_thread.run_sync(app.state.inference.close)
    await anyio.to_thread.run_sync(app.state.frame_threads.close)
    await anyio.to_thread.run_sync(app.state.follow_up.close)
    await anyio.to_thread.run_sync(app.state.recorder.close)
    app.state.engine.dispose()


def _recorder(settings: Settings) -> PredictionRecorder:
    days = settings.ledger_max_age_days
    max_age = None if days is None else timedelta(days=days)
    retention = Retention(max_bytes=settings.ledger_max_bytes, max_age=max_age)
    return PredictionRecorder(settings.ledger_dir, retention)


def _clear_abandoned(app: FastAPI) -> None:
    app.state.storage.clear_spool(older_than=time.time() - ABANDONED_AFTER_S)
    app.state.archive_pieces.clear_abandoned()
