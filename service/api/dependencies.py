"""What endpoints ask for; `service.api.app.create_app` puts it all on ``app.state``.

What only looks something up is ``async``, though it waits for nothing: FastAPI hands every other
function to a thread and waits for that, once for each thing that an endpoint asks for.
"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from service.api.answers import Answers
from service.api.archive_pieces import ArchivePieces
from service.api.frame_threads import FrameThreads
from service.api.inspections import FrameInspections
from service.api.warm_start import WarmStart
from service.datasets.measurements import FrameMeasurer
from service.datasets.preview_store import PreviewStore
from service.ledger.recorder import PredictionRecorder
from service.serving.follow_up import FollowUp
from service.serving.inference import InferenceEngine
from service.serving.metrics import ServingMetrics
from service.settings import Settings
from service.storage import Storage


async def get_settings(request: Request) -> Settings:
    """Return the installation's settings."""
    settings: Settings = request.app.state.settings
    return settings


async def get_storage(request: Request) -> Storage:
    """Return the installation's storage."""
    storage: Storage = request.app.state.storage
    return storage


async def get_engine(request: Request) -> Engine:
    """Return the installation's database."""
    engine: Engine = request.app.state.engine
    return engine


async def get_archive_pieces(request: Request) -> ArchivePieces:
    """Return what takes in archives piece by piece."""
    pieces: ArchivePieces = request.app.state.archive_pieces
    return pieces


async def get_inference(request: Request) -> InferenceEngine:
    """Return the engine that owns the device."""
    inference: InferenceEngine = request.app.state.inference
    return inference


async def get_frame_threads(request: Request) -> FrameThreads:
    """Return the threads of ``/predict``."""
    threads: FrameThreads = request.app.state.frame_threads
    return threads


async def get_inspections(request: Request) -> FrameInspections:
    """Return what takes frames to their verdicts."""
    inspections: FrameInspections = request.app.state.inspections
    return inspections


async def get_answers(request: Request) -> Answers:
    """Return what records and counts predictions."""
    answers: Answers = request.app.state.answers
    return answers


async def get_metrics(request: Request) -> ServingMetrics:
    """Return what counts predictions."""
    metrics: ServingMetrics = request.app.state.metrics
    return metrics


async def get_recorder(request: Request) -> PredictionRecorder:
    """Return what writes into the ledger."""
    recorder: PredictionRecorder = request.app.state.recorder
    return recorder


async def get_follow_up(request: Request) -> FollowUp:
    """Return what happens to frames after their answers."""
    follow_up: FollowUp = request.app.state.follow_up
    return follow_up


async def get_previews(request: Request) -> PreviewStore:
    """Return the store of drawn previews."""
    previews: PreviewStore = request.app.state.previews
    return previews


async def get_measurer(request: Request) -> FrameMeasurer:
    """Return what measures stored frames."""
    measurer: FrameMeasurer = request.app.state.measurer
    return measurer


async def get_warm_start(request: Request) -> WarmStart:
    """Return what loads the deployed models at the start."""
    warm_start: WarmStart = request.app.state.warm_start
    return warm_start


def get_read_session(request: Request) -> Iterator[Session]:
    """Yield a session that never waits for a writer and never commits."""
    sessions: sessionmaker[Session] = request.app.state.read_sessions
    with sessions() as session:
        yield session


def get_session(request: Request) -> Iterator[Session]:
    """Yield a session that is committed when the endpoint returns, rolled back when it raises.

    Its first statement takes the write lock: decode, hash and write files before it or without it.
    """
    sessions: sessionmaker[Session] = request.app.state.write_sessions
    with sessions.begin() as session:
        yield session


# With function scope the commit comes before the answer is sent: a client that reads 201 finds the
# row, and a commit that fails is answered as the failure it is.
ReadSession = Annotated[Session, Depends(get_read_session, scope="function")]
WriteSession = Annotated[Session, Depends(get_session, scope="function")]
AnswersDependency = Annotated[Answers, Depends(get_answers)]
ArchivePiecesDependency = Annotated[ArchivePieces, Depends(get_archive_pieces)]
EngineDependency = Annotated[Engine, Depends(get_engine)]
FrameThreadsDependency = Annotated[FrameThreads, Depends(get_frame_threads)]
FollowUpDependency = Annotated[FollowUp, Depends(get_follow_up)]
InferenceDependency = Annotated[InferenceEngine, Depends(get_inference)]
InspectionsDependency = Annotated[FrameInspections, Depends(get_inspections)]
MeasurerDependency = Annotated[FrameMeasurer, Depends(get_measurer)]
MetricsDependency = Annotated[ServingMetrics, Depends(get_metrics)]
PreviewsDependency = Annotated[PreviewStore, Depends(get_previews)]
RecorderDependency = Annotated[PredictionRecorder, Depends(get_recorder)]
SettingsDependency = Annotated[Settings, Depends(get_settings)]
StorageDependency = Annotated[Storage, Depends(get_storage)]
WarmStartDependency = Annotated[WarmStart, Depends(get_warm_start)]
