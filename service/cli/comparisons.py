"""``hairline compare``: does full resolution pay on this version?"""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.options import DEFAULT_URL, Url, exit_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.comparisons.resources import ArmResource, ComparisonResource, Rate

_LIMITS = {"passes": "max_epochs", "steps": "max_steps", "minutes": "max_minutes"}


def compare(
    version: Annotated[
        str,
        typer.Argument(help="A frozen version (ver_…), or a comparison (cmp_…) to go on watching."),
    ],
    arms: Annotated[
        str, typer.Option(help="Of native, half, quarter and tiled, in order of training.")
    ] = "native,half,quarter,tiled",
    equal: Annotated[
        str, typer.Option(help="What the arms have in common: passes, steps or minutes.")
    ] = "passes",
    budget: Annotated[
        float | None, typer.Option(help="How many of them; 20 passes without it.")
    ] = None,
    tile_px: Annotated[int | None, typer.Option(help="Side of the tiled arm's windows.")] = None,
    job: Annotated[
        Path | None,
        typer.Option(help="A JSON file of other fields of POST /jobs that all arms share."),
    ] = None,
    wait: Annotated[
        bool, typer.Option(help="Wait until every arm has ended; the service goes on anyhow.")
    ] = True,
    html: Annotated[
        Path | None, typer.Option(help="Write the comparison as a page to this file, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Train at native size, smaller and in tiles, and set the results side by side."""
    from service.client import HairlineClient, HairlineError

    wishes = _wishes(arms, equal, budget, tile_px, job)
    with HairlineClient(url) as client:
        try:
            if version.startswith("cmp_"):
                found = client.comparison(version)
            else:
                found = client.create_comparison(version, **wishes)
            typer.echo(f"{found.id}: {url}{found.page}", err=True)
            if wait:
                with _arm_bars(found) as show:
                    found = client.wait_for_comparison(found.id, on_change=show)
            if html is not None:
                html.write_text(client.comparison_page(found.id), encoding="utf-8")
        except (HairlineError, OSError) as error:
            raise exit_with(f"{version}: {error}") from error
    typer.echo(found.model_dump_json(indent=2) if as_json else _text(found))
    if any(arm.status in {"failed", "cancelled"} for arm in found.arms):
        raise typer.Exit(1)


def _wishes(
    arms: str, equal: str, budget: float | None, tile_px: int | None, job: Path | None
) -> dict[str, Any]:
    """Return the body of ``POST /comparisons`` without the version; the service checks it."""
    if equal not in _LIMITS:
        raise exit_with(f"--equal {equal} is none of {', '.join(_LIMITS)}.")
    shared: dict[str, Any] = {}
    if job is not None:
        try:
            shared = json.loads(job.read_bytes())
        except (OSError, ValueError) as error:
            raise exit_with(f"{job}: {error}. It holds fields of POST /jobs as JSON.") from error
        if not isinstance(shared, dict):
            raise exit_with(f"{job}: it is no JSON object. It holds fields of POST /jobs as JSON.")
    if budget is not None:
        number = budget if equal == "minutes" else round(budget)
        shared["budget"] = {**shared.get("budget", {}), _LIMITS[equal]: number}
    wishes: dict[str, Any] = {"arms": arms.split(","), "equal": equal, "job": shared}
    if tile_px is not None:
        wishes["tile"] = {"height_px": tile_px, "width_px": tile_px}
    return wishes


@contextmanager
def _arm_bars(found: "ComparisonResource") -> "Iterator[Callable[[ComparisonResource], None]]":
    """Show how far each arm is, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {
            arm.name: bars.add_task(arm.name, total=1.0, status=arm.status) for arm in found.arms
        }

        def show(now: "ComparisonResource") -> None:
            for arm in now.arms:
                done = 1.0 if arm.result else arm.fraction or 0.0
                bars.update(tasks[arm.name], completed=done, status=arm.status)

        yield show


def _text(found: "ComparisonResource") -> str:
    lines = [_arm_line(arm) for arm in found.arms]
    lines += ["", *found.findings] if found.findings else []
    return "\n".join([*lines, "", *(f"Note: {note}" for note in found.notes)])


def _arm_line(arm: "ArmResource") -> str:
    head = f"{arm.name:8} {arm.job} {arm.status}"
    if arm.error is not None:
        return f"{head}: {arm.error.detail} {arm.error.hint or ''}".rstrip()
    if arm.result is None:
        return head
    result = arm.result
    dice = "unknown" if result.dice is None else f"{result.dice:.3f}"
    return (
        f"{head}: {_rate(result.recall)} defects found, {_rate(result.escape)} escapes, "
        f"{_rate(result.overkill)} overkill, Dice {dice}, "
        f"{result.training.seconds / 60:.1f} min of training, "
        f"{result.peak_memory_bytes / 1e9:.2f} GB"
    )


def _rate(rate: "Rate") -> str:
    return f"{rate.events}/{rate.n}"
