"""What the command line's commands share: where the service is, and how they give up."""

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="HAIRLINE_URL", help="Where the service listens.")]


def exit_with(message: str) -> typer.Exit:
    """Print what went wrong and return the exit to raise, status 1."""
    typer.echo(message, err=True)
    return typer.Exit(1)
