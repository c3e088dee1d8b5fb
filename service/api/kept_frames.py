"""Frames of the line that were kept: which, what they showed, and into which data set they go."""

import io
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Self

from fastapi import APIRouter, Path, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from service.api.dependencies import (
    EngineDependency,
    FollowUpDependency,
    ReadSession,
    RecorderDependency,
    SettingsDependency,
    StorageDependency,
    WriteSession,
)
from service.api.deployments import AuthoredRequest, Because, Name, User, named, told
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import KeptFrame
from service.datasets.incoming import IncomingFile
from service.datasets.resources import UploadResource
from service.datasets.uploads import Uploads
from service.errors import FilesRejected, NotFound
from service.ledger.recorder import PredictionRecorder
from service.serving import deployments, kept_frames
from service.serving.deployment_resources import (
    DeploymentResource,
    Keeping,
    KeepingResource,
    KeptFrameResource,
)
from service.serving.deployments import Author
from service.serving.kept_frames import Cause
from service.serving.line_frames import file_name
from service.storage import Storage

router = APIRouter(tags=["deployments"])

_MOST_FRAMES = 1000
# As large as a database's integer.
FrameId = Annotated[int, Field(ge=1, lt=2**63)]


class KeepingRequest(Keeping, AuthoredRequest):
    """Which frames to keep for relabelling."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"ng": True, "uncertain": {"margin": 0.1}}]},
    )


class FromKeptRequest(BaseModel):
    """Kept frames to take into a data set: some by their numbers, or all of a cause."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"deployment": "line-1", "cause": "ng"}]}
    )

    deployment: Annotated[str, Field(min_length=1, max_length=64)]
    frames: Annotated[list[FrameId] | None, Field(min_length=1, max_length=_MOST_FRAMES)] = None
    cause: Annotated[
        Cause | None, Field(description=f"All of it, the newest {_MOST_FRAMES} at most.")
    ] = None

    @model_validator(mode="after")
    def _check_one_choice(self) -> Self:
        if (self.frames is None) == (self.cause is None):
            raise ValueError("name either frames or a cause")
        return self


@router.get("/deployments/{name}/keep")
def get_keeping(name: Name, session: ReadSession, follow_up: FollowUpDependency) -> KeepingResource:
    """Return which frames are kept for relabelling, and how many there are."""
    deployment = deployments.get(session, name)
    count, byte_count = kept_frames.total(session, name, ["ng", "uncertain"])
    keeping = deployment.keeping
    return KeepingResource(
        keep=None if keeping is None else Keeping.model_validate(keeping),
        frames=count,
        bytes=byte_count,
        not_kept=follow_up.keeper.not_kept(name),
    )


@router.put("/deployments/{name}/keep")
def put_keeping(
    name: Name,
    body: KeepingRequest,
    writing: WriteSession,
    recorder: RecorderDependency,
    user: User = None,
) -> DeploymentResource:
    """Keep NG frames, uncertain ones or both from now on, as many as the bounds allow."""
    keeping = Keeping.model_validate(body.model_dump(exclude={"by", "reason"}))
    return _set(writing, recorder, name, keeping, body.author(user))


@router.delete("/deployments/{name}/keep")
def delete_keeping(
    name: Name,
    writing: WriteSession,
    recorder: RecorderDependency,
    user: User = None,
    reason: Because = None,
) -> DeploymentResource:
    """Keep no more frames; those that are there go by the default bounds, after thirty days."""
    return _set(writing, recorder, name, None, Author(named(user), reason))


@router.get("/deployments/{name}/frames")
def list_kept_frames(
    name: Name,
    session: ReadSession,
    cause: Annotated[Cause | None, Query(description="Left out: NG and uncertain ones.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[KeptFrameResource]:
    """List kept frames with the answers they got, newest first."""
    deployments.get(session, name)
    causes: tuple[Cause, ...] = ("ng", "uncertain") if cause is None else (cause,)
    rows, following = fetch_page(
        session,
        _kept(name, causes),
        order=(KeptFrame.id,),
        limit=limit,
        cursor=cursor,
        descending=True,
    )
    return Page(items=[kept_resource(row) for row in rows], next_cursor=following)


@router.get(
    "/deployments/{name}/frames/{frame_id}/image",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}, "description": "The frame as it was sent."}},
)
def get_kept_image(
    name: Name,
    frame_id: Annotated[int, Path(ge=1, lt=2**63)],
    session: ReadSession,
    storage: StorageDependency,
) -> Response:
    """Return a kept frame's picture: the file that was sent, or a PNG of a camera's buffer."""
    row = kept_frames.get(session, name, frame_id)
    return Response(_read(storage, row), media_type=row.media_type)


@router.post(
    "/datasets/{dataset_id}/images:from-kept",
    status_code=status.HTTP_201_CREATED,
    tags=["data sets"],
)
def post_kept_images(
    dataset_id: str,
    body: FromKeptRequest,
    session: ReadSession,
    engine: EngineDependency,
    storage: StorageDependency,
    settings: SettingsDependency,
) -> UploadResource:
    """Take kept frames into a data set, where they wait for their labels.

    What the model said of them is no label and is not taken along.
    """
    uploads = Uploads(engine, storage, settings, dataset_id)
    deployments.get(session, body.deployment)
    rows = _chosen(session, body)
    # The same frame may have been sent, and kept, several times.
    files = {row.file_sha256: _incoming(storage, row) for row in rows}
    outcomes = uploads.accept_all(list(files.values()))
    if any(outcome.outcome == "rejected" for outcome in outcomes):
        raise FilesRejected(outcomes)
    counts = Counter(outcome.outcome for outcome in outcomes)
    return UploadResource(files=list(outcomes), counts=dict(counts))


def kept_resource(row: KeptFrame) -> KeptFrameResource:
    """Return what the API answers of a kept frame."""
    return KeptFrameResource.model_validate(
        {
            **{name: getattr(row, name) for name in _SAME},
            "image": f"/deployments/{row.deployment}/frames/{row.id}/image",
        }
    )


_SAME = tuple(name for name in KeptFrameResource.model_fields if name != "image")


def _kept(name: str, causes: Sequence[Cause]) -> Select[KeptFrame]:
    return select(KeptFrame).where(KeptFrame.deployment == name, KeptFrame.cause.in_(causes))


def _chosen(session: Session, body: FromKeptRequest) -> list[KeptFrame]:
    if body.frames is not None:
        return kept_frames.chosen(session, body.deployment, body.frames)
    assert body.cause is not None  # The request has been checked.
    newest = _kept(body.deployment, [body.cause]).order_by(KeptFrame.id.desc())
    return list(session.scalars(newest.limit(_MOST_FRAMES)))


def _incoming(storage: Storage, row: KeptFrame) -> IncomingFile:
    name = file_name(row.deployment, row.file_sha256, row.media_type)
    return IncomingFile(name, lambda: io.BytesIO(_read(storage, row)))


def _read(storage: Storage, row: KeptFrame) -> bytes:
    try:
        return storage.kept_path(row.file_sha256).read_bytes()
    except OSError as error:
        raise NotFound(
            "kept_frame_missing",
            f"the file of frame {row.id} can't be read: {error.strerror or error}",
            hint="it may have been deleted in time just now; list the frames again",
        ) from error


def _set(
    writing: Session,
    recorder: PredictionRecorder,
    name: str,
    keeping: Keeping | None,
    author: Author,
) -> DeploymentResource:
    deployment = deployments.get(writing, name)
    wish = None if keeping is None else keeping.model_dump(mode="json")
    if deployment.keeping == wish:
        return told(writing, recorder, deployment, None)
    deployment.keeping = wish
    writing.flush()
    event = deployments.record(
        writing, deployment, "keeping_changed", author, details={"keep": wish}
    )
    return told(writing, recorder, deployment, event)
