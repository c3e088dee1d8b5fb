"""The command line: ``hairline serve``, ``upload``, ``predict``, ``demo``, reports and others.

Everything heavy is imported inside the command that needs it, so that ``hairline --help`` answers
at once.
"""

from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli import deployments, ledger, reports, weights
from service.cli.comparisons import compare
from service.cli.options import DEFAULT_URL, Url, exit_with
from service.cli.predict import predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.client import HairlineClient
    from service.client.folder_upload import FolderFiles
    from service.errors import FileOutcome

app = typer.Typer(
    help="Training and inference for high-resolution industrial defect detection.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(ledger.app, name="ledger")
app.add_typer(weights.app, name="weights")


@app.command()
def serve(
    storage: Annotated[
        Path | None, typer.Option(help="Storage directory (HAIRLINE_STORAGE_DIR).")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (HAIRLINE_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port, 0 takes a free one (HAIRLINE_PORT).")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:1 (HAIRLINE_DEVICE).")
    ] = None,
) -> None:
    """Start the service: the REST API and a worker that trains."""
    from pydantic import ValidationError

    from service.errors import StorageError
    from service.serve import configure_logging
    from service.serve import serve as run
    from service.settings import Settings

    given = {"storage_dir": storage, "host": host, "port": port, "device": device}
    wishes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    configure_logging()
    try:
        run(Settings(**wishes), lambda url: typer.echo(f"Hairline listens on {url}"))
    except (ValidationError, StorageError, OSError) as error:
        raise exit_with(f"The service can't start: {error}") from error


@app.command()
def upload(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder of frames with masks, COCO, LabelMe, VOC or YOLO files, or a zip, tar, "
            "tar.gz or tar.zst archive of one."
        ),
    ],
    dataset: Annotated[str, typer.Option(help="Name of the data set; created if it is new.")],
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="A class of a new data set; repeat it, in the order of the masks' values or of "
            "data.yaml, whose names are taken if there is one.",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="How an archive's files belong together, if it can't be recognized: coco, cvat, "
            "voc, yolo, labelme, masks, class_masks (a mask file a class), mvtec or deeppcb."
        ),
    ] = None,
    bayer: Annotated[
        str | None,
        typer.Option(
            help="A new data set's frames are raw Bayer mosaics: RGGB, BGGR, GRBG or GBRG."
        ),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload a folder or an archive; run it again to go on where it was cut off."""
    from service.client import HairlineClient, HairlineError

    pattern = None if bayer is None else _bayer_pattern(bayer)
    found, numbered = (None, None) if source.is_file() else _look_into(source)
    if found is not None and layout is not None:
        raise exit_with("A layout is for an archive: pack the folder, then upload that.")
    with HairlineClient(url) as client:
        try:
            dataset_id = _dataset_id(client, dataset, classes or None, numbered, pattern)
            if found is None:
                rejected = _send_archive(client, dataset_id, source, layout)
            else:
                rejected = _send_folder(client, dataset_id, found)
        except HairlineError as error:
            raise exit_with(f"{error}. Run the same command again to go on.") from error
        except OSError as error:
            raise exit_with(f"{source} can't be read: {error}") from error
    if rejected:
        raise typer.Exit(1)


def _look_into(folder: Path) -> "tuple[FolderFiles, tuple[str, ...] | None]":
    """Return a folder's files, and the classes as its YOLO files number them."""
    from data import DataError
    from service.client.folder_upload import list_folder

    try:
        found = list_folder(folder)
        return found, found.yolo_classes()
    except (DataError, OSError) as error:
        raise exit_with(f"{error}.") from error


def _send_folder(client: "HairlineClient", dataset_id: str, found: "FolderFiles") -> bool:
    """Upload a folder's files and say what became of them; True if any was rejected."""
    from service.client.folder_upload import upload_files

    with _byte_bar("upload") as show:
        done = upload_files(client, dataset_id, found, progress=show)
    for outcome in done.rejected:
        typer.echo(_rejection(outcome), err=True)
    if found.yolo_lists:
        lists = ", ".join(file.name for file in found.yolo_lists)
        typer.echo(f"Not sent, because they only say how a YOLO set is divided: {lists}")
    there = done.files - len(done.rejected)
    typer.echo(
        f"{dataset_id}: {there} of {done.files} files are there, {done.known} of them were before"
    )
    return bool(done.rejected)


def _send_archive(
    client: "HairlineClient", dataset_id: str, archive: Path, layout: str | None
) -> bool:
    """Upload an archive, wait for its import and say what became of it; True if not all is well."""
    with _byte_bar("upload") as show:
        upload = client.upload_archive(dataset_id, archive, progress=show, layout=layout)
    import_id = upload.queued.id
    with _import_bar() as show_files:
        ended = client.wait_for_import(
            dataset_id, import_id, on_change=lambda now: show_files(now.done, now.total)
        )
    for outcome in ended.rejected:
        typer.echo(_rejection(outcome), err=True)
    if ended.error is not None:
        hint = f" {ended.error.hint}" if ended.error.hint else ""
        typer.echo(f"{import_id} failed: {ended.error.detail}{hint}", err=True)
    taken = ended.done - len(ended.rejected)
    if ended.layout is not None:
        typer.echo("\n".join(filter(None, [ended.layout.evidence, *ended.layout.notes])))
    typer.echo(f"{dataset_id}: {import_id} took in {taken} of {ended.total} files")
    if upload.sent_bytes == 0:
        typer.echo(
            f"Nothing was sent: the archive was there by {ended.created_at:%Y-%m-%d %H:%M} UTC. "
            "To import it once more, touch the file."
        )
    return ended.status != "succeeded"


@contextmanager
def _byte_bar(task_name: str) -> "Iterator[Callable[[int, int | None], None]]":
    """Show how many bytes have gone over the line, on a terminal only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(task_name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _import_bar() -> "Iterator[Callable[[int, int | None], None]]":
    """Show how many files of an archive have been dealt with, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("import"), BarColumn(), MofNCompleteColumn(), TextColumn("files"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("import", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _rejection(outcome: "FileOutcome") -> str:
    where = f" ({outcome.where})" if outcome.where else ""
    hint = f" {outcome.hint}" if outcome.hint else ""
    return f"{outcome.file}{where}: {outcome.detail}{hint}"


reports.add_to(app)
deployments.add_to(app)
app.command()(compare)
app.command()(predict)


@app.command()
def export(
    version: Annotated[
        str, typer.Argument(help="Id of a frozen version (ver_…) or a model (mdl_…).")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="coco, labelme, masks, voc or yolo; of a model onnx or openvino."
        ),
    ] = "coco",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Tar file to write, VERSION-FORMAT.tar without it; of a model a folder.",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write a version's frames and labels to a tar file, or a model's export into a folder.

    A model's export is refused if it judges any golden frame otherwise than the model does.
    """
    from service.cli.engines import MODEL_FORMATS, export_model
    from service.client import HairlineClient, HairlineError

    if form in MODEL_FORMATS:
        export_model(version, form, output, url)
        return
    target = output or Path(f"{version}-{form}.tar")
    with HairlineClient(url) as client, _byte_bar("export") as show:
        try:
            client.export(version, form, target, progress=show)
        except (HairlineError, OSError) as error:
            raise exit_with(f"{version} was not exported: {error}") from error
    typer.echo(f"{target}: {target.stat().st_size} bytes")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave the service running at the end.")] = False,
) -> None:
    """Draw frames, train on them and inspect one, to see that all of it works."""
    from service.demo import run_demo

    run_demo(keep=keep)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(metadata.version("hairline"))


def main() -> None:
    """Run the command line."""
    app()


def _bayer_pattern(given: str) -> str:
    from data.bayer import BAYER_PATTERNS

    pattern = given.upper()
    if pattern not in BAYER_PATTERNS:
        raise exit_with(f"--bayer {given} is no pattern; choose of {', '.join(BAYER_PATTERNS)}.")
    return pattern


def _dataset_id(
    client: "HairlineClient",
    name: str,
    classes: list[str] | None,
    numbered: tuple[str, ...] | None,
    bayer: str | None,
) -> str:
    """Return the data set of that name, new or old, if its classes suit.

    Args:
        client: Of the service.
        name: Of the data set.
        classes: As the person names them.
        numbered: As the folder's YOLO files number them; another order would be other classes.
        bayer: The pattern of raw mosaics, as the person names it.
    """
    if numbered is not None:
        if classes is not None and classes != [*numbered]:
            raise exit_with(f"--class contradicts data.yaml, which numbers {', '.join(numbered)}.")
        classes = [*numbered]
    for dataset in client.datasets():
        if dataset.name == name:
            if classes is not None and classes != dataset.classes:
                declared = ", ".join(dataset.classes or ["none"])
                raise exit_with(
                    f"The data set {name!r} is there already and declares other classes "
                    f"({declared}) than {', '.join(classes)}. Give another name with --dataset, or "
                    "the same classes in the same order."
                )
            if bayer is not None and bayer != dataset.bayer:
                raise exit_with(
                    f"The data set {name!r} is there already and declares "
                    f"{dataset.bayer or 'no Bayer pattern'}. Leave --bayer out, or give another "
                    "name with --dataset."
                )
            return dataset.id
    return client.create_dataset(name, classes=classes, bayer=bayer).id
