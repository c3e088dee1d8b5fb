"""``hairline predict FILES…``: the verdict on each picture, and what they come to."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import DEFAULT_URL, Url, exit_with

if TYPE_CHECKING:
    from service.client import HairlineClient
    from service.resources import Prediction

# A person at a shell waits for a busy line's queue; a program passes its own deadline.
_PATIENCE_S = 60.0
_FAILED = "failed"
# A table wider than a screen tells nobody anything.
_SHOWN_DEFECTS = 3


def predict(
    frames: Annotated[list[Path], typer.Argument(help="Pictures to inspect.")],
    deployment: Annotated[str, typer.Option(help="The name that is served.")] = "default",
    model: Annotated[str | None, typer.Option(help="A model by its id instead.")] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="After it a picture is NOT_INSPECTED.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="The pictures show this part, which gets one verdict.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Ask for the verdict on each picture.

    The exit status is 0 if all are OK, 2 if any is not, and 1 if any could not be asked about.
    """
    from service.client import HairlineClient, HairlineError

    wishes: dict[str, Any] = {
        "deployment": None if model else deployment,
        "model": model,
        "deadline_ms": deadline_ms,
        "patience_s": _PATIENCE_S,
    }
    with HairlineClient(url) as client:
        if part is None:
            counts = _predict_each(client, frames, wishes, as_json=as_json)
        else:
            try:
                answer = client.predict_part(part, frames, **wishes)
            except (HairlineError, OSError) as error:
                raise exit_with(f"part {part}: {error}") from error
            if as_json:
                typer.echo(answer.model_dump_json())
            else:
                for frame, image in zip(frames, answer.images, strict=False):
                    typer.echo(_row(frame, image))
                typer.echo(f"part {part}: {answer.verdict}", err=True)
            counts = Counter({answer.verdict: 1})
    if counts[_FAILED]:
        raise typer.Exit(1)
    if set(counts) != {"OK"}:
        raise typer.Exit(2)


def _predict_each(
    client: "HairlineClient", frames: list[Path], wishes: dict[str, Any], *, as_json: bool
) -> Counter[str]:
    """Print each picture's row and the summary, and return how often each verdict was given."""
    from service.client import HairlineError

    counts: Counter[str] = Counter()
    for frame in frames:
        try:
            answer = client.predict(frame, **wishes)
        except (HairlineError, OSError) as error:
            counts[_FAILED] += 1
            typer.echo(f"{frame}: {error}", err=True)
            if as_json:
                problem = getattr(error, "problem", {"detail": str(error)})
                typer.echo(json.dumps({"file": str(frame), "error": problem}))
            if getattr(error, "code", None) == "unreachable":
                break
            continue
        counts[answer.verdict] += 1
        typer.echo(answer.model_dump_json() if as_json else _row(frame, answer))
    if len(frames) > 1:
        typer.echo(_summary(counts, len(frames)), err=True)
    return counts


def _row(frame: Path, answer: "Prediction") -> str:
    found = [f"{found.class_name} {found.score:.2f} at {found.box}" for found in answer.defects]
    shown = found[:_SHOWN_DEFECTS]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    if answer.verdict == "NOT_INSPECTED":
        shown = [*answer.warnings[-1:]]
    total_ms = answer.timings_ms["total"]
    return f"{answer.verdict:<13}\t{total_ms:7.0f} ms\t{frame}\t{', '.join(shown)}".rstrip()


def _summary(counts: Counter[str], frames: int) -> str:
    told = [f"{counts[verdict]} {verdict}" for verdict in ("OK", "NG", "NOT_INSPECTED", _FAILED)]
    asked = sum(counts.values())
    left = f"; {frames - asked} not asked about" if asked < frames else ""
    return f"{asked} of {frames} frames: {', '.join(told)}{left}"
