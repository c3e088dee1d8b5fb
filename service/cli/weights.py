"""``hairline weights``: files of weights that jobs may start from, for the administrator."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Weights that jobs may start from.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.callback()
def _group() -> None:
    """Keep ``import`` a command of its own: typer makes a single command the whole program."""


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="A checkpoint of timm or torchvision, .pth or .safetensors."),
    ],
    name: Annotated[str, typer.Option(help="What jobs will call it.")],
    storage: Annotated[
        Path | None, typer.Option(help="Storage directory (HAIRLINE_STORAGE_DIR).")
    ] = None,
) -> None:
    """Convert a checkpoint into a file that jobs may start from, and print its digests."""
    import re

    from service.errors import InvalidRequest
    from service.jobs.spec import WEIGHTS_NAME_PATTERN
    from service.settings import Settings
    from service.weights_import import import_checkpoint

    if not re.fullmatch(WEIGHTS_NAME_PATTERN, f"{name}.safetensors"):
        typer.echo(f"{name!r} is no name: use letters, digits, dot, dash and underscore", err=True)
        raise typer.Exit(1)
    settings = Settings() if storage is None else Settings(storage_dir=storage)
    try:
        made = import_checkpoint(source, settings.resolved_weights_dir, name)
    except InvalidRequest as error:
        typer.echo(f"{error.detail}. {error.hint}.", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        typer.echo(f"{settings.resolved_weights_dir} can't be written: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{made.path}: {made.tensors} tensors for {', '.join(made.encoders)}")
    typer.echo(f"SHA-256 of the checkpoint: {made.source_sha256}")
    typer.echo(f"SHA-256 of the file:       {made.sha256}")
