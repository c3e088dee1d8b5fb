"""``hairline ledger verify``: prove that no entry was changed since it was written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.ledger.chain import Entry

app = typer.Typer(
    help="The record of predictions.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command()
def verify(
    storage: Annotated[
        Path | None, typer.Option(help="Storage directory (HAIRLINE_STORAGE_DIR).")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="A hash that was kept elsewhere; the ledger must hold it."),
    ] = None,
) -> None:
    """Read every entry and check its hash and its place; the exit status is 1 if one is wrong.

    It reads the files beside a running service and writes nothing.
    """
    from service.errors import ServiceError
    from service.ledger.chain import GENESIS, Link, link_of
    from service.ledger.journal import TORN, verified_entries
    from service.settings import Settings

    settings = Settings() if storage is None else Settings(storage_dir=storage)
    count, last, found = 0, Link(), head in (None, GENESIS)
    damaged = False
    try:
        for entry in verified_entries(settings.ledger_dir):
            count += 1
            last = link_of(entry)
            found = found or last.hash == head
            if entry.get("kind") == "recovered":
                typer.echo(_set_aside(entry), err=True)
                damaged = damaged or entry["reason"] != TORN
    except ServiceError as error:
        where = " ".join(part for part in (error.file, error.where) if part)
        typer.echo(f"NOT INTACT, {where}: {error.detail}. {error.hint or ''}".rstrip(), err=True)
        typer.echo(f"{count} entries before that are as they were written.", err=True)
        raise typer.Exit(1) from error
    if not found:
        typer.echo(
            f"NOT INTACT: no entry of {settings.ledger_dir} has the hash {head}. Its entries were "
            "written anew, or those up to that one were retired or lost.",
            err=True,
        )
        raise typer.Exit(1)
    if count == 0:
        typer.echo(f"{settings.ledger_dir} holds no entry.")
        return
    typer.echo(
        f"{count} entries, {last.sequence - count + 1} to {last.sequence}, are as they were "
        f"written. Head: {last.hash}"
    )
    if damaged:
        raise typer.Exit(1)


def _set_aside(entry: "Entry") -> str:
    return (
        f"Entry {entry['sequence']} tells that {entry['bytes']} bytes were set aside in "
        f"{entry['set_aside']}: {entry['reason']}"
    )
