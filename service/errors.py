"""What the service refuses, and why; ``service.api`` alone knows their HTTP codes.

ServiceError
├── InvalidRequest     the request can't be meant as it is written
│   ├── FilesRejected  some files of an upload were refused; the others are kept
│   └── PayloadTooLarge  the body is larger than this installation accepts
├── NotFound           no such resource
├── Conflict           the resource's state forbids it
├── NotReady           not now; the same request may succeed later
│   └── TooManyRequests  not now, because this client asks for more than its share
└── StorageError       the disk under the service failed
"""

# ruff: noqa: N818 - each name says what is the case, as in "raise NotFound".

from dataclasses import dataclass


@dataclass(frozen=True)
class FileOutcome:
    """What became of one uploaded file: ``accepted``, ``known`` or ``rejected``."""

    file: str
    outcome: str
    item: str | None = None
    code: str | None = None
    detail: str | None = None
    where: str | None = None
    hint: str | None = None
    notes: tuple[str, ...] = ()


class ServiceError(Exception):
    """An error a person can act on: what happened, where, and what to do about it."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        file: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.file = file
        self.where = where
        self.hint = hint


class InvalidRequest(ServiceError):
    """The request can't be meant as it is written."""


class FilesRejected(InvalidRequest):
    """Some files of an upload were refused; the others are kept."""

    def __init__(self, outcomes: tuple[FileOutcome, ...]) -> None:
        rejected = [outcome for outcome in outcomes if outcome.outcome == "rejected"]
        first = rejected[0]
        kept = len(outcomes) - len(rejected)
        super().__init__(
            first.code or "file_rejected",
            f"{len(rejected)} of {len(outcomes)} files rejected, {kept} kept. "
            f"First: {first.file}: {first.detail}",
            file=first.file,
            where=first.where,
            hint=first.hint,
        )
        self.outcomes = outcomes


class PayloadTooLarge(InvalidRequest):
    """The body is larger than this installation accepts."""


class NotFound(ServiceError):
    """No such resource."""


class Conflict(ServiceError):
    """The resource's state forbids it."""


class NotReady(ServiceError):
    """Not now; the same request may succeed later.

    Attributes:
        retry_after_s: When, as far as it is known.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        file: str | None = None,
        where: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, detail, file=file, where=where, hint=hint)
        self.retry_after_s = retry_after_s


class TooManyRequests(NotReady):
    """Not now, because this client asks for more than its share."""


class StorageError(ServiceError):
    """The disk under the service failed."""
