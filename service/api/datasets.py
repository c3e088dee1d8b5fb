"""Data sets: create, list, look at, and send files to."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, BinaryIO, Literal

import anyio
from fastapi import APIRouter, Request, status
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy import select
from starlette.datastructures import UploadFile

from data.bayer import BayerPattern
from service.api.dependencies import ReadSession, SettingsDependency, WriteSession
from service.api.idempotency import IdempotencyKey, create_once
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Dataset
from service.datasets.incoming import IncomingFile
from service.datasets.repository import counts_of, create_dataset, get_dataset
from service.datasets.resources import DatasetResource, Obstacle, UploadResource
from service.datasets.uploads import Uploads
from service.errors import FilesRejected, InvalidRequest, PayloadTooLarge

router = APIRouter(prefix="/datasets", tags=["data sets"])


def _all_different(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("class names must differ")
    return names


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
# A mask stores class indices in 8 bits, and 255 is the usual "other" value.
Classes = Annotated[
    list[ClassName], Field(min_length=1, max_length=254), AfterValidator(_all_different)
]


class DatasetRequest(BaseModel):
    """A data set to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "bearing-rings", "task": "segmentation", "classes": ["scratch", "pit"]}
            ]
        },
    )

    name: Name
    task: Literal["segmentation", "detection"]
    classes: Annotated[
        Classes | None,
        Field(
            description="Order matters to masks: their value i + 1 stands for classes[i]. "
            "Without classes every name in an annotation file is accepted, and masks are binary."
        ),
    ] = None
    bayer: Annotated[
        BayerPattern | None,
        Field(
            description="Declares that every frame is a raw Bayer mosaic, kept as it is and read "
            "in colour: the filters over the top left 2x2 pixels, row by row. It can't be changed."
        ),
    ] = None


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=DatasetResource,
    summary="Create a data set",
)
def post_dataset(
    body: DatasetRequest, session: WriteSession, idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """Create an empty data set."""

    def create() -> tuple[int, dict[str, Any]]:
        dataset = create_dataset(
            session, name=body.name, task=body.task, classes=body.classes, bayer=body.bayer
        )
        return status.HTTP_201_CREATED, _answer(dataset).model_dump(mode="json")

    code, answer = create_once(
        session,
        idempotency_key,
        operation="POST /datasets",
        request=body.model_dump(mode="json"),
        create=create,
    )
    return JSONResponse(answer, code, headers={"Location": f"/datasets/{answer['id']}"})


@router.get("", summary="List data sets")
def list_datasets(
    session: ReadSession, limit: Limit = 100, cursor: Cursor = None
) -> Page[DatasetResource]:
    """List data sets by name."""
    rows, following = fetch_page(
        session, select(Dataset), order=(Dataset.name,), limit=limit, cursor=cursor
    )
    return Page(items=[_answer(row) for row in rows], next_cursor=following)


@router.get("/{dataset_id}", summary="Look at a data set")
def read_dataset(dataset_id: str, session: ReadSession) -> DatasetResource:
    """Return a data set, its counts and what keeps it from being frozen."""
    return _answer(get_dataset(session, dataset_id))


@router.post(
    "/{dataset_id}/images",
    status_code=status.HTTP_201_CREATED,
    summary="Upload frames and labels",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["files"],
                        "properties": {
                            "files": {
                                "type": "array",
                                "items": {"type": "string", "format": "binary"},
                                "description": "Frames, masks and annotation files; names may "
                                "carry folders, e.g. train/images/x.jpg.",
                            }
                        },
                    },
                    "example": {"files": ["images/a.jpg", "masks/a_mask.png", "b.jpg", "b.json"]},
                }
            },
        }
    },
)
async def upload_files(
    dataset_id: str, request: Request, settings: SettingsDependency
) -> UploadResource:
    """Accept each file or say why not; the good ones are kept whatever becomes of the others."""
    limit = settings.max_files_per_request
    state = request.app.state
    # A data set that does not exist is refused before its files are received.
    uploads = await anyio.to_thread.run_sync(
        partial(Uploads, state.engine, state.storage, settings, dataset_id)
    )
    # One more than allowed, so that the limit is reported in our words and not in the parser's.
    async with request.form(max_files=limit + 1, max_fields=limit + 1) as form:
        files = _incoming(form.multi_items(), limit)
        outcomes = await anyio.to_thread.run_sync(
            uploads.accept_all, files, limiter=state.ingest_limiter
        )
    if any(outcome.outcome == "rejected" for outcome in outcomes):
        raise FilesRejected(outcomes)
    counts = Counter(outcome.outcome for outcome in outcomes)
    return UploadResource(files=list(outcomes), counts=dict(counts))


def _incoming(parts: Sequence[tuple[str, UploadFile | str]], limit: int) -> list[IncomingFile]:
    files = []
    for field, part in parts:
        if field != "files" or not isinstance(part, UploadFile):
            raise InvalidRequest(
                "unexpected_part",
                f"the form's part {field!r} is not a file called 'files'",
                where=f"/{field}",
                hint="Send every file as a part 'files' with its file name.",
            )
        files.append(_incoming_file(part))
    if not files:
        raise InvalidRequest(
            "no_files",
            "the request holds no file",
            where="/files",
            hint="Send multipart/form-data with one or more parts 'files'.",
        )
    if len(files) > limit:
        raise PayloadTooLarge(
            "too_many_files",
            f"the request holds more than {limit} files",
            hint=f"Send at most {limit} files a request, or one archive.",
        )
    return files


def _incoming_file(part: UploadFile) -> IncomingFile:
    def open_part() -> BinaryIO:
        part.file.seek(0)
        return part.file

    return IncomingFile(part.filename or "", open_part)


def _answer(dataset: Dataset) -> DatasetResource:
    counts = counts_of(dataset)
    problems = []
    if counts.unlabelled:
        problems.append(
            Obstacle(
                code="missing_label",
                detail=f"{counts.unlabelled} frames have no label",
                hint="Upload their labels, or say what they are when freezing a version.",
            )
        )
    if counts.labels_without_image:
        problems.append(
            Obstacle(
                code="label_without_image",
                detail=f"{counts.labels_without_image} labels have no frame",
                hint="Upload the frames they belong to, or delete the labels.",
            )
        )
    return DatasetResource(
        id=dataset.id,
        name=dataset.name,
        task=dataset.task,
        classes=dataset.classes,
        bayer=dataset.bayer,
        created_at=dataset.created_at,
        counts={
            "items": counts.items,
            "labelled": counts.labelled,
            "unlabelled": counts.unlabelled,
            "labels_without_image": counts.labels_without_image,
        },
        class_counts=counts.classes,
        problems=problems,
    )
