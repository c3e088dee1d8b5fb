"""``hairline health`` and ``hairline report``: what is printed, and the pages that are saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import DEFAULT_URL, Url, exit_with

if TYPE_CHECKING:
    from service.client import HairlineClient
    from service.datasets.resources import FindingResource, VersionHealthResource


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(health)
    app.command()(report)


def report(
    job: Annotated[str, typer.Argument(help="A job that has succeeded, by its id.")],
    html: Annotated[
        Path | None, typer.Option(help="Write the page with plots and pictures to this file.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Tell what the test frames say of a job's model, and save the page of its report."""
    from service.client import HairlineClient, HairlineError

    with HairlineClient(url) as client:
        try:
            statements = client.job_report(job).get("statements", [])
            if html is not None:
                html.write_text(client.job_report_page(job), encoding="utf-8")
        except (HairlineError, OSError) as error:
            raise exit_with(f"{job}: {error}") from error
    for sentence in statements:
        typer.echo(sentence)
    if html is not None:
        typer.echo(f"{html}: {html.stat().st_size} bytes")


def health(
    version: Annotated[str, typer.Argument(help="A data-set version by its id.")],
    html: Annotated[
        Path | None, typer.Option(help="Write the report with thumbnails to this file, too.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Tell what is wrong with a version; the exit status is 1 if anything is an error."""
    from service.client import HairlineClient, HairlineError

    with HairlineClient(url) as client:
        try:
            report = _measured_health(client, version)
            if html is not None:
                html.write_text(client.health_page(version), encoding="utf-8")
        except (HairlineError, OSError) as error:
            raise exit_with(f"{version}: {error}") from error
    for finding in report.findings:
        typer.echo(_finding_lines(finding))
    errors = sum(finding.severity == "error" for finding in report.findings)
    frames = f"{report.pixels.of} frames were looked at"
    typer.echo(f"{errors} errors, {len(report.findings) - errors} warnings; {frames}.")
    for sentence in report.unchecked:
        typer.echo(f"Not looked at: {sentence}")
    if report.has_errors:
        raise typer.Exit(1)


def _measured_health(client: "HairlineClient", version: str) -> "VersionHealthResource":
    """Ask until every frame is measured, showing how far it is on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("measuring frames"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measure", total=None)
        while True:
            report = client.health(version, wait_s=2)
            bar.update(task, completed=report.pixels.measured, total=report.pixels.of)
            if report.pixels.is_complete:
                return report


def _finding_lines(finding: "FindingResource") -> str:
    lines = [f"{finding.severity.upper()} {finding.code} ({finding.count}): {finding.detail}"]
    lines += [f"    {example}" for example in finding.examples]
    lines += ["    ..."] if finding.is_cut else []
    return "\n".join([*lines, f"  What to do: {finding.hint}", ""])
