"""``hairline export MODEL``: a model's files for other runtimes, refused if a verdict differs."""

import tarfile
import tempfile
from pathlib import Path

import typer

from service.cli.options import exit_with

MODEL_FORMATS = ("onnx", "openvino")


def export_model(model: str, form: str, output: Path | None, url: str) -> None:
    """Write a model's export into a folder, having it made and compared first where need be."""
    from service.client import HairlineClient, HairlineError

    folder = output or Path(f"{model}-{form}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary, HairlineClient(url) as client:
            archive = Path(temporary) / "export.tar"
            client.export_model(model, form, archive)
            with tarfile.open(archive) as files:
                for member in files:
                    member.name = Path(member.name).name
                    files.extract(member, folder, filter="data")
                    typer.echo(f"{folder / member.name}: {member.size} bytes")
    except (HairlineError, OSError) as error:
        raise exit_with(f"{model} was not exported: {error}") from error
