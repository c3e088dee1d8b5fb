"""What the commands of several modules share: where the service is, and how a command gives up."""

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="HAIRLINE_URL", help="Where the service listens.")]


def give_up(message: str) -> typer.Exit:
    """Say why on the error stream and return what to raise."""
    typer.echo(message, err=True)
    return typer.Exit(1)
