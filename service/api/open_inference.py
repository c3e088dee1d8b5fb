"""The Open Inference Protocol (KServe V2), for lines that have a client for it.

The same inspections as ``/predict``, recorded in the same ledger. Of the specification's REST part
this is health, metadata and inference, with the binary tensor data extension for the input.
"""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data.camera_buffers import BufferLayout
from models import BundleInfo
from service import model_registry
from service.api.answers import json_response
from service.api.dependencies import (
    AnswersDependency,
    EngineDependency,
    FrameThreadsDependency,
    InferenceDependency,
    InspectionsDependency,
    ReadSession,
    SettingsDependency,
    StorageDependency,
    WarmStartDependency,
)
from service.api.frame_body import read_body
from service.api.health import get_readiness
from service.api.inspections import Draft, Wish
from service.errors import InvalidRequest, NotFound, PayloadTooLarge
from service.resources import Prediction
from service.serving import deployments
from service.serving.deployments import Served
from service.serving.inference import InferenceEngine
from service.serving.uploaded_frame import UploadedFrame

router = APIRouter(prefix="/v2", tags=["open inference"])

INPUT = "image"
_BINARY_HEADER = "Inference-Header-Content-Length"
# Numbers spelled in JSON hold up every other request while they are read: a large frame comes
# as bytes behind the JSON.
MAX_JSON_BYTES = 8 * 1024**2
_LONGEST_NUMBER = 12

Name = Annotated[str, Path(description="A deployment, or a model's id.")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InferParameters(_Message):
    """What a request may set besides its input; outputs always come as JSON."""

    deadline_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    part_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    binary_data_output: bool = False


class InputParameters(_Message):
    """Of a tensor whose bytes follow the JSON."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = None


class InferInput(_Message):
    """The frame: [1, height, width, channels]."""

    name: Literal["image"]
    shape: tuple[Literal[1], int, int, Literal[1, 3]]
    datatype: Literal["UINT8", "UINT16"]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class OutputWish(_Message):
    """An output by its name."""

    name: Literal["verdict", "classes", "scores", "boxes"]
    parameters: dict[str, Any] = {}


class InferRequest(_Message):
    """One frame to inspect."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "part 17",
                    "parameters": {"deadline_ms": 900},
                    "inputs": [
                        {
                            "name": "image",
                            "shape": [1, 1, 2, 1],
                            "datatype": "UINT8",
                            "data": [128, 131],
                        }
                    ],
                }
            ]
        }
    )

    id: str | None = None
    parameters: InferParameters = InferParameters()
    inputs: tuple[InferInput]
    outputs: tuple[OutputWish, ...] | None = None


class Tensor(BaseModel):
    """An output, its numbers in row order."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class InferResponse(BaseModel):
    """The verdict and what it rests on; ``parameters`` hold what `/predict` says besides."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None
    parameters: dict[str, Any]
    outputs: list[Tensor]


@router.get("")
def get_server() -> dict[str, Any]:
    """Answer what server this is."""
    from importlib import metadata

    version = metadata.version("hairline")
    return {"name": "hairline", "version": version, "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
def get_live() -> dict[str, bool]:
    """Answer that the process is alive."""
    return {"live": True}


@router.get("/health/ready")
def get_ready(
    engine: EngineDependency,
    storage: StorageDependency,
    settings: SettingsDependency,
    warm_start: WarmStartDependency,
) -> dict[str, bool]:
    """Answer whether the service can do its work, as ``/readyz`` does."""
    get_readiness(engine, storage, settings, warm_start)
    return {"ready": True}


@router.get("/models/{name}")
def get_model(name: Name, session: ReadSession, inference: InferenceDependency) -> dict[str, Any]:
    """Answer what a model takes and gives."""
    model_id = _named(session, name).model_id
    info = inference.describe(model_id)
    channels = 1 if info.preprocessing.bayer else info.preprocessing.in_channels
    return {
        "name": name,
        "versions": [model_id],
        "platform": "hairline",
        "inputs": [
            {
                "name": INPUT,
                "datatype": f"UINT{info.preprocessing.bit_depth}",
                "shape": [1, -1, -1, channels],
            }
        ],
        "outputs": [
            {"name": "verdict", "datatype": "BYTES", "shape": [1]},
            {"name": "classes", "datatype": "BYTES", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1]},
            {"name": "boxes", "datatype": "INT32", "shape": [-1, 4]},
        ],
    }


@router.get("/models/{name}/ready")
def get_model_ready(
    name: Name, session: ReadSession, inference: InferenceDependency
) -> dict[str, Any]:
    """Answer that a model can be asked."""
    inference.describe(_named(session, name).model_id)
    return {"name": name, "ready": True}


@router.post(
    "/models/{name}/infer",
    response_model=InferResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": InferRequest.model_json_schema()},
            },
        }
    },
)
async def infer(
    request: Request,
    name: Name,
    inference: InferenceDependency,
    inspections: InspectionsDependency,
    threads: FrameThreadsDependency,
    answers: AnswersDependency,
) -> Response:
    """Inspect one frame."""
    begin_s = time.perf_counter()
    raw = await read_body(request)
    header = request.headers.get(_BINARY_HEADER)
    asked, frame = await threads.picture(lambda: _read(raw, header))
    wish, model = await threads.answer(
        lambda: _wish(request, name, asked.parameters, begin_s, inference)
    )

    async def already_read(_: Request) -> list[UploadedFrame]:
        return [frame]

    drafts = await inspections.inspect(request, wish, model, already_read)
    (draft,) = drafts or [Draft(frame)]
    return json_response(
        await threads.answer(
            lambda: _response(name, asked, answers.frame(draft, wish, model)).model_dump_json()
        )
    )


def _named(session: Any, name: str) -> Served:
    """Return the model that a name stands for, with what goes with a deployment if it is one."""
    try:
        return deployments.served(session, name)
    except NotFound:
        if not name.startswith("mdl_"):
            raise
    return Served(model_registry.get(session, name).id)


def _wish(
    request: Request,
    name: str,
    parameters: InferParameters,
    begin_s: float,
    inference: InferenceEngine,
) -> tuple[Wish, BundleInfo]:
    with request.app.state.read_sessions() as session:
        served = _named(session, name)
    end_s = None if parameters.deadline_ms is None else begin_s + parameters.deadline_ms / 1000
    wish = Wish(
        served=served,
        request_id=request.scope["state"]["request_id"],
        begin_s=begin_s,
        deadline_s=end_s,
        part_id=parameters.part_id,
    )
    return wish, inference.describe(served.model_id)


def _read(raw: bytes, header: str | None) -> tuple[InferRequest, UploadedFrame]:
    """Return what a body asks for and its frame.

    Raises:
        InvalidRequest: It is no such request, or its tensor is not of the size it tells.
        PayloadTooLarge: Its JSON is too long.
    """
    json_bytes = len(raw) if header is None else _json_length(header, len(raw))
    if json_bytes > MAX_JSON_BYTES:
        raise PayloadTooLarge(
            "json_too_large",
            f"the request's JSON has {json_bytes} bytes, of at most {MAX_JSON_BYTES}",
            hint=f"send the tensor as bytes behind the JSON, and {_BINARY_HEADER}; or use /predict",
        )
    try:
        asked = InferRequest.model_validate_json(raw[:json_bytes])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = "/" + "/".join(str(step) for step in first["loc"])
        raise InvalidRequest(
            "invalid_request",
            f"{place}: {first['msg']}",
            where=place,
            hint="GET /v2/models/{name} tells the input; docs/predict.md has an example",
        ) from error
    return asked, _frame(asked.inputs[0], raw[json_bytes:])


def _json_length(header: str, body_bytes: int) -> int:
    is_number = header.isascii() and header.isdecimal() and len(header) <= _LONGEST_NUMBER
    if not is_number or int(header) > body_bytes:
        raise InvalidRequest(
            "header_invalid",
            f"{_BINARY_HEADER} is {header[:40]!r}, of a body of {body_bytes} bytes",
            where=f"header/{_BINARY_HEADER}",
            hint="it tells the length of the JSON before the tensor's bytes",
        )
    return int(header)


def _frame(tensor: InferInput, behind: bytes) -> UploadedFrame:
    _, height, width, channels = tensor.shape
    size = height * width * channels
    announced = tensor.parameters.binary_data_size
    if announced is not None and (announced != len(behind) or tensor.data is not None):
        raise _mismatch(f"binary_data_size is {announced}, and {len(behind)} bytes follow the JSON")
    if announced is None and behind:
        raise _mismatch(f"{len(behind)} bytes follow the JSON, and no binary_data_size says so")
    if height < 1 or width < 1:
        raise _mismatch(f"a frame of {width}x{height} px has no pixels")
    content = behind if announced is not None else _spelled(tensor, size)
    depth = 8 if tensor.datatype == "UINT8" else 16
    pixel_format = f"{'Mono' if channels == 1 else 'RGB'}{depth}"
    return UploadedFrame(INPUT, content, BufferLayout(width, height, pixel_format))


def _spelled(tensor: InferInput, size: int) -> bytes:
    """Return the bytes of numbers in JSON, flat or nested as the shape is."""
    import numpy as np

    dtype = np.dtype("u1" if tensor.datatype == "UINT8" else "<u2")
    try:
        flat = TypeAdapter(list[int]).validate_python(
            np.array(tensor.data).ravel().tolist(), strict=True
        )
        numbers = np.array(flat, dtype)
    except (ValidationError, ValueError, OverflowError, TypeError) as error:
        raise _mismatch(f"data holds something else than {tensor.datatype} numbers") from error
    if numbers.size != size:
        raise _mismatch(f"data has {numbers.size} numbers, the shape {size}")
    return numbers.tobytes()


def _mismatch(detail: str) -> InvalidRequest:
    return InvalidRequest(
        "tensor_mismatch",
        detail,
        where="/inputs/0",
        hint="shape is [1, height, width, channels], data or bytes as many numbers in that order",
    )


def _response(name: str, asked: InferRequest, answer: Prediction) -> InferResponse:
    found = answer.defects
    outputs = [
        Tensor(name="verdict", datatype="BYTES", shape=[1], data=[answer.verdict]),
        Tensor(
            name="classes",
            datatype="BYTES",
            shape=[len(found)],
            data=[defect.class_name for defect in found],
        ),
        Tensor(
            name="scores",
            datatype="FP32",
            shape=[len(found)],
            data=[defect.score for defect in found],
        ),
        Tensor(
            name="boxes",
            datatype="INT32",
            shape=[len(found), 4],
            data=[side for defect in found for side in defect.box],
        ),
    ]
    # The verdict is what it is about: no choice of outputs leaves it out.
    wanted = None if asked.outputs is None else {"verdict", *(wish.name for wish in asked.outputs)}
    return InferResponse(
        model_name=name,
        model_version=answer.model.id,
        id=asked.id,
        parameters={
            "request_id": answer.request_id,
            "ledger_sequence": answer.ledger_sequence,
            "warnings": list(answer.warnings),
            "timings_ms": answer.timings_ms,
        },
        outputs=[output for output in outputs if wanted is None or output.name in wanted],
    )
