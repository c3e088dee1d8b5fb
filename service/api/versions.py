"""Immutable data-set versions."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, status
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from data import Manifest, SplitSpec
from data.export import ExportFormat, export_files, tar_size, tar_stream
from data.manifest_diff import diff_manifests
from service.api.dependencies import EngineDependency, ReadSession, StorageDependency
from service.api.idempotency import IdempotencyKey, record, replay
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.engine import session_factory
from service.database.tables import Version
from service.datasets.repository import get_dataset
from service.datasets.resources import (
    VersionDiffResource,
    VersionResource,
)
from service.datasets.versions import Unlabelled, freeze, get_version, select_versions

router = APIRouter(tags=["data-set versions"])

# A data set may have 100,000 frames, and a difference is read by people.
MOST_NAMES = 1000

Share = Annotated[float, Field(ge=0, le=1)]


class SplitRequest(BaseModel):
    """How to split; shares add up to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Share = SplitSpec.train
    calibration: Annotated[Share, Field(description="Thresholds are chosen on it.")] = (
        SplitSpec.calibration
    )
    test: Annotated[Share, Field(description="Looked at once.")] = SplitSpec.test
    seed: Annotated[int, Field(ge=0, lt=2**63)] = SplitSpec.seed
    group_pattern: Annotated[
        str | None,
        Field(
            max_length=500,
            description="Regular expression on a frame's name; its first group names the part, lot "
            "or specimen, which never crosses splits. Without it each frame is its own group.",
        ),
    ] = None


class VersionRequest(BaseModel):
    """A version to freeze."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "split": {
                        "train": 0.7,
                        "calibration": 0.15,
                        "test": 0.15,
                        "seed": 0,
                        "group_pattern": r"part_(\d+)",
                    },
                    "unlabelled": "reject",
                }
            ]
        },
    )

    split: SplitRequest = SplitRequest()
    unlabelled: Annotated[
        Unlabelled, Field(description="What to do with frames that have no label.")
    ] = "reject"


@router.post(
    "/datasets/{dataset_id}/versions",
    status_code=status.HTTP_201_CREATED,
    response_model=VersionResource,
    responses={200: {"model": VersionResource, "description": "This version existed already"}},
    summary="Freeze a version",
)
def post_version(
    dataset_id: str,
    body: VersionRequest,
    engine: EngineDependency,
    storage: StorageDependency,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Freeze the data set as it is now; the same content and split give the same version."""
    operation, request = f"POST /datasets/{dataset_id}/versions", body.model_dump(mode="json")
    if idempotency_key is not None:
        with session_factory(engine, writes=False)() as session:
            known = replay(session, idempotency_key, operation=operation, request=request)
        if known is not None:
            return _created(*known)
    version, is_new = freeze(
        engine,
        storage,
        dataset_id,
        split=SplitSpec(**body.split.model_dump()),
        unlabelled=body.unlabelled,
    )
    code = status.HTTP_201_CREATED if is_new else status.HTTP_200_OK
    answer = _answer(version).model_dump(mode="json")
    if idempotency_key is not None:
        # A twin that came in between has frozen the same version or recorded another one; the
        # answer of the first to record stands.
        with session_factory(engine).begin() as session:
            known = replay(session, idempotency_key, operation=operation, request=request)
            if known is not None:
                return _created(*known)
            record(
                session,
                idempotency_key,
                operation=operation,
                request=request,
                status=code,
                body=answer,
            )
    return _created(code, answer)


@router.get("/datasets/{dataset_id}/versions", summary="List a data set's versions")
def list_versions(
    dataset_id: str, session: ReadSession, limit: Limit = 100, cursor: Cursor = None
) -> Page[VersionResource]:
    """List versions, newest first."""
    get_dataset(session, dataset_id)
    rows, following = fetch_page(
        session,
        select_versions(dataset_id),
        order=(Version.created_at, Version.id),
        limit=limit,
        cursor=cursor,
        descending=True,
    )
    return Page(items=[_answer(row) for row in rows], next_cursor=following)


@router.get("/versions/{version_id}", summary="Look at a version")
def read_version(version_id: str, session: ReadSession) -> VersionResource:
    """Return a version with its statistics."""
    return _answer(get_version(session, version_id))


@router.get(
    "/versions/{version_id}/manifest",
    summary="Download a version's manifest",
    response_class=FileResponse,
    responses={200: {"content": {"application/jsonl": {}}}},
)
def read_manifest(
    version_id: str, session: ReadSession, storage: StorageDependency
) -> FileResponse:
    """Send the manifest: a header line, then one line a frame."""
    version = get_version(session, version_id)
    return FileResponse(
        storage.manifest_path(version.digest),
        media_type="application/jsonl",
        filename=f"{version.id}.jsonl",
    )


@router.get("/versions/{version_id}/diff", summary="Compare a version with an older one")
def read_diff(
    version_id: str,
    against: Annotated[str, Query(description="The older version's id.")],
    session: ReadSession,
    storage: StorageDependency,
) -> VersionDiffResource:
    """Return what changed from `against` to this version, 1000 names of each kind at the most."""
    older, newer = (
        Manifest.read(storage.manifest_path(get_version(session, wanted).digest))
        for wanted in (against, version_id)
    )
    lists = asdict(diff_manifests(older, newer))
    counts = {name: len(entries) for name, entries in lists.items()}
    shown = {name: entries[:MOST_NAMES] for name, entries in lists.items()}
    return VersionDiffResource(older=against, newer=version_id, counts=counts, **shown)


@router.get(
    "/versions/{version_id}/export",
    summary="Export a version",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}}},
)
def export_version(
    version_id: str,
    form: Annotated[
        ExportFormat, Query(alias="format", description="What to write the labels as.")
    ],
    session: ReadSession,
    storage: StorageDependency,
) -> StreamingResponse:
    """Send a tar archive of the frames and their labels; imported again it is the same version."""
    version = get_version(session, version_id)
    manifest = Manifest.read(storage.manifest_path(version.digest))
    files = export_files(manifest, storage.root, form)
    headers = {
        "Content-Disposition": f'attachment; filename="{version.id}-{form}.tar"',
        # By it a client tells how far it is, and an archive that was cut off from a whole one.
        "Content-Length": str(tar_size(files)),
    }
    return StreamingResponse(tar_stream(files), media_type="application/x-tar", headers=headers)


def _created(code: int, answer: dict[str, Any]) -> JSONResponse:
    return JSONResponse(answer, code, headers={"Location": f"/versions/{answer['id']}"})


def _answer(version: Version) -> VersionResource:
    columns: dict[str, Any] = {
        name: getattr(version, name) for name in VersionResource.model_fields if name != "dataset"
    }
    return VersionResource(**columns, dataset=version.dataset_id)
