"""``hairline demo``: the main job on drawn frames, through REST as a user would do it.

It draws a data set, starts the service, uploads, trains, deploys, predicts on frames that were
never uploaded, and compares the verdicts with what was drawn.
"""

import base64
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from data.flaws import CLASSES
from service.client import HairlineClient
from service.resources import JobResource, Prediction

# All frames show parts of one product, as those of a line do.
PRODUCT_SEED = 1
UNSEEN_FRAMES = 8
UNSEEN_WIDTH_PX, UNSEEN_HEIGHT_PX = 2500, 2000
# Two frames show each part; a part must not be both learned and judged.
SPLIT = {"train": 0.76, "calibration": 0.12, "test": 0.12, "group_pattern": r"(part_\d+)"}
_UPLOAD_BATCH = 40
_START_S = 120.0


@dataclass(frozen=True)
class DemoPlan:
    """What the demo draws and trains on one kind of device.

    Attributes:
        why: Said to the person who watches.
        frames: How many are drawn for training, calibration and test together.
        width_px: Of these frames; unseen ones always have the camera's full size.
        height_px: The same.
        job: The fields of ``POST /jobs`` besides the version.
    """

    why: str
    frames: int
    width_px: int
    height_px: int
    job: dict[str, Any]


GPU_PLAN = DemoPlan(
    why="A GPU is there: training on whole 2500x2000 frames, batch 2.",
    frames=96,
    width_px=2500,
    height_px=2000,
    job={
        "model": {"encoder": "resnet18"},
        "norm": {"kind": "cbn"},
        "budget": {"max_epochs": 60, "max_minutes": 5},
        "early_stopping": None,
    },
)
CPU_PLAN = DemoPlan(
    why=(
        "No GPU: training a light network on native crops of smaller frames (same pixels, less "
        "area), batch 2. Prediction runs on whole 2500x2000 frames all the same."
    ),
    frames=112,
    width_px=1024,
    height_px=896,
    job={
        "model": {
            "encoder": "resnet18",
            "encoder_depth": 4,
            "decoder_channels": [64, 32, 16, 16],
        },
        "norm": {"kind": "cbn"},
        "resolution": {"mode": "crop", "height_px": 256, "width_px": 256, "defect_rate": 0.7},
        # The marks run one way in every frame of the product; mirrored ones would be another.
        "augmentation": {"flips": False},
        "budget": {"max_epochs": 40, "max_minutes": 5},
        "early_stopping": None,
    },
)


def cpu_plan() -> DemoPlan:
    """Return the plan for this processor.

    What it learns is a matter of how many steps the minutes hold, and bfloat16 holds more of them
    where a processor knows it.
    """
    from models.engines import processor_has_bf16

    if not processor_has_bf16():
        return CPU_PLAN
    return replace(
        CPU_PLAN,
        why=f"{CPU_PLAN.why} In bfloat16, which this processor knows.",
        job={**CPU_PLAN.job, "precision": "bfloat16"},
    )


def run_demo(*, keep: bool, folder: Path = Path("hairline-demo")) -> None:
    """Run the main job once and say what came of it.

    Args:
        keep: Leave the service running and its storage in place.
        folder: Made anew; frames, storage and overlay pictures go there.

    Side effects: starts processes, listens on a free local port, writes into ``folder``.
    """
    from data.synthetic import write_dataset
    from models import resolve_device

    console = Console()
    began_s = time.monotonic()
    plan = GPU_PLAN if resolve_device("auto").type == "cuda" else cpu_plan()
    console.print(plan.why)
    shutil.rmtree(folder, ignore_errors=True)
    with _bar(console) as bar:
        for name, count, size, seed, good_rate in (
            ("training", plan.frames, (plan.width_px, plan.height_px), 1, 0.25),
            ("unseen", UNSEEN_FRAMES, (UNSEEN_WIDTH_PX, UNSEEN_HEIGHT_PX), 2, 0.5),
        ):
            task = bar.add_task(f"drawing {name} frames", total=count)
            show = partial(_show_drawn, bar, task)
            write_dataset(
                folder / name,
                count=count,
                good_rate=good_rate,
                seed=seed,
                width_px=size[0],
                height_px=size[1],
                product_seed=PRODUCT_SEED,
                progress=show,
            )
    with _service(folder, keep=keep, console=console) as url, HairlineClient(url) as client:
        console.print(f"The service listens on {url} (its log: {folder / 'service.log'}).")
        job = _train(client, plan, folder, console)
        if job.model is None:
            problem = job.error
            console.print(f"The job {job.status}: {problem.detail if problem else ''}")
            raise SystemExit(1)
        _print_report(console, client.model_report(job.model))
        page = folder / "report.html"
        page.write_text(client.job_report_page(job.id), encoding="utf-8")
        console.print(f"The report as a page: {page.resolve()}")
        client.deploy("default", job.model)
        _predict(client, folder, console)
    console.print(f"Done in {(time.monotonic() - began_s) / 60:.1f} minutes.")


def _show_drawn(bar: Progress, task: TaskID, done: int, _total: int) -> None:
    bar.update(task, completed=done)


def _train(client: HairlineClient, plan: DemoPlan, folder: Path, console: Console) -> JobResource:
    dataset = client.create_dataset("machined surfaces", classes=CLASSES)
    root = folder / "training"
    files = sorted(path for path in root.rglob("*.png"))
    named = [(path.relative_to(root).as_posix(), path) for path in files]
    with _bar(console) as bar:
        task = bar.add_task("uploading", total=len(named))
        for start in range(0, len(named), _UPLOAD_BATCH):
            batch = named[start : start + _UPLOAD_BATCH]
            client.upload(dataset.id, batch)
            bar.advance(task, len(batch))
    version = client.freeze(dataset.id, split=SPLIT)
    job = client.create_job(version.id, **plan.job)
    with _bar(console) as bar:
        task = bar.add_task("training", total=1.0)

        def show(now: JobResource) -> None:
            loss = now.metrics.values.get("loss")
            text = now.status if loss is None else f"{now.status}, loss {loss:.2f}"
            bar.update(task, description=text, completed=now.progress.fraction or 0.0)

        ended = client.wait_for_job(job.id, on_change=show)
        bar.update(task, completed=1.0)
    return ended


def _print_report(console: Console, report: dict[str, Any]) -> None:
    metrics, training = report["metrics"], report["training"]
    console.print(
        f"{training['steps']} steps in {training['seconds'] / 60:.1f} minutes on "
        f"{report['machine']['device']}; CBN in {len(report['norm']['converted'])} layers, "
        f"{len(report['norm']['left'])} left as they were."
    )
    table = Table(title=f"Test split, {metrics['frames']} frames")
    for heading in ("class", "pixel Dice", "defects found", "false regions a frame"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name in CLASSES:
        region = metrics["regions"][name]
        table.add_row(
            name,
            _score(metrics["pixels"][name]["dice"]),
            f"{region['recall']['events']} of {region['recall']['n']}",
            f"{region['false_per_frame']:.2f}",
        )
    console.print(table)
    for sentence in report["statements"]:
        console.print(sentence)
    brightness = report["baselines"]["brightness_threshold"]
    console.print(
        f"Any class: Dice {_score(metrics['pixels']['any']['dice'])}; the best threshold on "
        f"brightness reaches {_score(brightness['dice'])}."
    )


def _predict(client: HairlineClient, folder: Path, console: Console) -> None:
    overlays = folder / "overlays"
    overlays.mkdir()
    table = Table(title=f"Unseen frames, {UNSEEN_WIDTH_PX}x{UNSEEN_HEIGHT_PX}")
    for heading in ("frame", "drawn", "verdict", "defects", "model ms", "total ms"):
        table.add_column(heading)
    agreed = 0
    frames = sorted((folder / "unseen" / "images").glob("*.png"))
    for frame in frames:
        answer = client.predict(frame, include=["overlay"])
        (overlays / frame.name).write_bytes(base64.b64decode(answer.pictures["overlay"]))
        drawn = "NG" if _is_defective(folder, frame) else "OK"
        agreed += drawn == answer.verdict
        table.add_row(
            frame.stem,
            drawn,
            answer.verdict,
            _count_by_class(answer),
            f"{answer.timings_ms['model']:.0f}",
            f"{answer.timings_ms['total']:.0f}",
        )
    console.print(table)
    console.print(f"{agreed} of {len(frames)} verdicts are what was drawn.")
    console.print(f"Overlay pictures: {overlays.resolve()}")


def _is_defective(folder: Path, frame: Path) -> bool:
    import cv2

    mask = cv2.imread(str(folder / "unseen" / "masks" / f"{frame.stem}_mask.png"), -1)
    assert mask is not None
    return bool(mask.any())


def _count_by_class(answer: Prediction) -> str:
    names = [defect.class_name for defect in answer.defects]
    return ", ".join(f"{names.count(name)} {name}" for name in CLASSES if name in names)


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


@contextlib.contextmanager
def _service(folder: Path, *, keep: bool, console: Console) -> Iterator[str]:
    """Start ``hairline serve`` on a free port; stop it at the end unless it is to be kept."""
    command: Sequence[str] = (
        *(sys.executable, "-m", "service.cli", "serve"),
        *("--storage", str(folder / "storage"), "--port", "0"),
    )
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program.
            command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True
        )
    assert process.stdout is not None
    stopping = True
    try:
        # One line on standard output says where it listens.
        url = process.stdout.readline().strip().rpartition(" ")[2]
        if not url.startswith("http"):
            console.print(f"The service did not start; see {folder / 'service.log'}.")
            raise SystemExit(1)
        with HairlineClient(url) as client:
            client.wait_until_ready(_START_S)
        yield url
        stopping = not keep
    finally:
        if stopping:
            process.send_signal(signal.SIGTERM)
            process.wait()
        else:
            console.print(
                f"The service is still running at {url} (docs at {url}/docs); "
                f"stop it with: kill {process.pid}"
            )
        process.stdout.close()
