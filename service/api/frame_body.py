"""The frame that a request brings: a form's part, a picture as the body, or a camera's buffer."""

from contextlib import aclosing
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from data.camera_buffers import PIXEL_FORMATS, BufferLayout
from service.errors import InvalidRequest, PayloadTooLarge
from service.serving.uploaded_frame import UploadedFrame

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/tiff", "image/webp")
_BUFFER_TYPE = "application/octet-stream"
_FORM_TYPE = "multipart/form-data"
# Of one part.  All of them hold places in the queue at once, and leave some for others.
MOST_FRAMES = 8
# Of a file in a form; a larger one goes through the disk.  A line's frames are smaller, and
# a body that is no form stays in memory whatever its size.
_IN_MEMORY_BYTES = 32 * 1024**2
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_HEADERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("X-Width", {"type": "integer", "minimum": 1}, "Pixels of a row of the buffer."),
    ("X-Height", {"type": "integer", "minimum": 1}, "Rows of the buffer."),
    ("X-Pixel-Format", {"type": "string", "enum": [*PIXEL_FORMATS]}, "As GenICam names it."),
    ("X-Stride", {"type": "integer", "minimum": 1}, "Bytes from one row's start to the next's."),
)
REQUEST_BODY = {
    "parameters": [
        {
            "name": name,
            "in": "header",
            "required": False,
            "schema": schema,
            "description": f"{meaning} For a body of {_BUFFER_TYPE}.",
        }
        for name, schema, meaning in _HEADERS
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                },
                "example": {"file": "(the bytes of frame.png)"},
            },
            **dict.fromkeys((*_IMAGE_TYPES, _BUFFER_TYPE), _BINARY),
        },
    },
}
# Ten digits would be a number that no frame has, and int() is slow on very long ones.
_MOST_DIGITS = 9


async def read_frame(request: Request) -> list[UploadedFrame]:
    """Read the one frame that a request brings.

    Raises:
        InvalidRequest: There is none, or its kind or its buffer's layout is not told.
        PayloadTooLarge: It is larger than this installation accepts.
    """
    limit = request.app.state.settings.max_file_bytes
    kind = _media_type(request)
    if kind == _FORM_TYPE:
        frames = await _read_parts(request, limit)
        if len(frames) > 1:
            raise InvalidRequest(
                "several_frames",
                f"the form has {len(frames)} files, and this call inspects one frame",
                where="/file",
                hint="send the frames of one part to POST /predict/part, others one by one",
            )
        return frames
    if kind not in (*_IMAGE_TYPES, _BUFFER_TYPE):
        raise InvalidRequest(
            "unsupported_media_type",
            f"a body of type {kind or 'unknown'!r} can't be inspected",
            where="header/Content-Type",
            hint=f"send a multipart part named file, or one of {', '.join(_IMAGE_TYPES)}, or a "
            f"camera's buffer as {_BUFFER_TYPE}",
        )
    layout = _layout_of(request) if kind == _BUFFER_TYPE else None
    return [UploadedFrame("body", await read_body(request), layout)]


async def read_part_frames(request: Request) -> list[UploadedFrame]:
    """Read the frames of one part, in the order sent.

    Raises:
        InvalidRequest: There is none, there are too many, or the body is no form.
        PayloadTooLarge: One is larger than this installation accepts.
    """
    kind = _media_type(request)
    if kind != _FORM_TYPE:
        raise InvalidRequest(
            "unsupported_media_type",
            f"a body of type {kind or 'unknown'!r} can't hold the frames of a part",
            where="header/Content-Type",
            hint="send multipart/form-data with a part named file for each frame",
        )
    return await _read_parts(request, request.app.state.settings.max_file_bytes)


async def read_body(request: Request) -> bytes:
    """Return the whole body.

    Raises:
        PayloadTooLarge: It is larger than this installation accepts of a frame.
    """
    limit = request.app.state.settings.max_file_bytes
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise _too_large("the body", limit)
    # Copied once; a buffer that grows is copied as often as it finds no room.
    return b"".join(chunks)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read_parts(request: Request, limit: int) -> list[UploadedFrame]:
    form = await _read_form(request)
    try:
        parts = form.getlist("file")
        if not parts or not all(isinstance(part, UploadFile) for part in parts):
            raise InvalidRequest(
                "missing_file",
                "the form has no file part named 'file'",
                where="/file",
                hint="curl -F file=@frame.png …/predict",
            )
        frames = []
        for part in parts:
            assert isinstance(part, UploadFile)
            name = part.filename or "file"
            if part.size is not None and part.size > limit:
                raise _too_large(name, limit)
            frames.append(UploadedFrame(name, await part.read()))
        return frames
    finally:
        await form.close()


class _FrameForm(MultiPartParser):
    """Keeps files in memory that starlette would write to disk, each chunk in a thread."""

    spool_max_size = _IN_MEMORY_BYTES


async def _read_form(request: Request) -> FormData:
    """Do what `Request.form` does, but for where files are kept."""
    try:
        async with aclosing(request.stream()) as stream:
            form = _FrameForm(request.headers, stream, max_files=MOST_FRAMES, max_fields=1)
            return await form.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error


def _layout_of(request: Request) -> BufferLayout:
    """Return what a request's headers say of the buffer in its body."""
    width, height = (_number(request, name) for name in ("X-Width", "X-Height"))
    pixel_format = request.headers.get("X-Pixel-Format")
    if width is None or height is None or pixel_format is None:
        missing = [name for name, _, _ in _HEADERS[:3] if name not in request.headers]
        raise InvalidRequest(
            "buffer_layout_missing",
            f"a buffer needs {', '.join(missing)}",
            where=f"header/{missing[0]}",
            hint="X-Width: 2500, X-Height: 2000, X-Pixel-Format: Mono8; a picture's file is sent "
            f"as one of {', '.join(_IMAGE_TYPES)}",
        )
    return BufferLayout(width, height, pixel_format, _number(request, "X-Stride"))


def _number(request: Request, name: str) -> int | None:
    given = request.headers.get(name)
    if given is None:
        return None
    is_number = given.isascii() and given.isdecimal() and len(given) <= _MOST_DIGITS
    if not is_number or int(given) == 0:
        raise InvalidRequest(
            "header_invalid",
            f"{name} is {given[:40]!r}, not a whole number above 0",
            where=f"header/{name}",
            hint=f"{name}: 2500",
        )
    return int(given)


def _too_large(name: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        "file_too_large",
        f"{name} has more than {limit} bytes",
        file=name,
        hint="raise HAIRLINE_MAX_FILE_BYTES if frames are that large",
    )
