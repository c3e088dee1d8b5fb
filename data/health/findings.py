"""The form in which everything that is wrong with a version is told."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]

MOST_EXAMPLES = 10


class Example(NamedTuple):
    """One thing that a finding concerns, and the frames that show it (none for a class)."""

    text: str
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do about it.

    Attributes:
        code: A stable word.
        severity: "error" where training or its judgement can't work, "warning" where it suffers.
        detail: One sentence.
        count: Frames, defects or classes concerned.
        examples: Some of their names.
        frames: For each example the names of the frames that show it.
        is_cut: Whether there are more examples.
        hint: The remedy.
    """

    code: str
    severity: Severity
    detail: str
    count: int
    examples: tuple[str, ...]
    frames: tuple[tuple[str, ...], ...]
    is_cut: bool
    hint: str


@dataclass(frozen=True)
class FileProblem:
    """A stored file of a version that can't be read as it was frozen.

    Attributes:
        code: Of the `DataError` that reading it raised.
        detail: Its sentence.
    """

    code: str
    detail: str


def finding(
    code: str,
    severity: Severity,
    detail: str,
    concerned: Iterable[str | Example],
    hint: str,
    *,
    count: int | None = None,
) -> Finding:
    """Return a finding about what is concerned, sorted and cut to `MOST_EXAMPLES`.

    Args:
        code: As in `Finding`.
        severity: As in `Finding`.
        detail: As in `Finding`.
        concerned: Everything concerned; a plain string is about no frame.
        hint: As in `Finding`.
        count: How many are concerned where that is not the number of examples.
    """
    examples = sorted(each if isinstance(each, Example) else Example(each) for each in concerned)
    shown = examples[:MOST_EXAMPLES]
    return Finding(
        code,
        severity,
        detail,
        len(examples) if count is None else count,
        tuple(example.text for example in shown),
        tuple(example.frames for example in shown),
        len(examples) > len(shown),
        hint,
    )
