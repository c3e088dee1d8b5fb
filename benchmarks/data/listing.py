"""Listing, counting and freezing over HTTP: a large data set against a small one.

The rows are inserted directly, without pictures: what is timed reads rows alone.
"""

import argparse
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.data.page import PAGE
from benchmarks.data.rounds import measure_rounds, median_s, ratio
from benchmarks.data.running_service import running_service
from benchmarks.results_page import spread
from data.labels import GoodFrame, Polygon, PolygonLabels
from service.client import HairlineClient
from service.database.engine import open_engine, session_factory
from service.database.tables import Item, Label
from service.datasets.labels import dump_labels
from service.ids import new_id
from service.settings import Settings

_ROWS_A_TRANSACTION = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    PAGE.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the page; return the exit status."""
    return PAGE.record("listing", arguments, measure)


def measure(quick: bool) -> dict[str, Any]:
    """Return the latencies of one run."""
    small, large, rounds = (20, 200, 3) if quick else (1000, 100_000, 30)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with (
            running_service(folder) as (client, url, api),
            httpx.Client(base_url=url, timeout=600) as http,
        ):
            datasets = [_fill(client, folder / "storage", count) for count in (small, large)]
            frozen = _freeze(client, http, api, datasets)
            for title, path in _pages(http).items():
                rows.append(_latency(http, title, path, datasets, rounds))
    return {
        "notes": [
            (
                f"{small:,} and {large:,} frames, each with a label; {rounds} rounds over one "
                "connection."
            ),
            frozen,
        ],
        "columns": ["", f"{small:,} frames", f"{large:,} frames", "ratio"],
        "rows": rows,
    }


def _pages(http: httpx.Client) -> dict[str, Callable[[str], str]]:
    """Return the calls by title, each a function of the data set's id."""
    return {
        "a page of 100 frames": lambda dataset: f"/datasets/{dataset}/items",
        "a page of 100 frames, from the middle": lambda dataset: (
            f"/datasets/{dataset}/items?cursor={_middle(http, dataset)}"
        ),
        "frames without a label": lambda dataset: f"/datasets/{dataset}/items?labelled=false",
        "counts of the data set": lambda dataset: f"/datasets/{dataset}",
        "its versions": lambda dataset: f"/datasets/{dataset}/versions",
    }


def _middle(http: httpx.Client, dataset: str) -> str:
    """Return the cursor of the page in the middle, reached page by page as a user would."""
    count = http.get(f"/datasets/{dataset}").raise_for_status().json()["counts"]["items"]
    cursor, seen, limit = "", 0, min(500, count // 2)
    while seen < count // 2:
        query = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        answer = http.get(f"/datasets/{dataset}/items", params=query).raise_for_status().json()
        cursor, seen = answer["next_cursor"], seen + limit
    return cursor


def _latency(
    http: httpx.Client, title: str, path: Callable[[str], str], datasets: list[str], rounds: int
) -> list[str]:
    small, large = (path(dataset) for dataset in datasets)
    seconds = measure_rounds(
        {
            "small": lambda: http.get(small).raise_for_status(),
            "large": lambda: http.get(large).raise_for_status(),
        },
        rounds=rounds,
        warm_up=3,
    )
    times = [f"{1000 * median_s(seconds, arm):.1f} ms" for arm in ("small", "large")]
    return [title, *times, spread(ratio(seconds, "large", "small"))]


def _freeze(
    client: HairlineClient, http: httpx.Client, api: psutil.Process, datasets: list[str]
) -> str:
    """Freeze each data set once and say what that took."""
    said = []
    for dataset in datasets:
        with _watch(http, api) as watched:
            start = time.perf_counter()
            frames = client.freeze(dataset).statistics["frames"]
            seconds = time.perf_counter() - start
        said.append(
            f"Freezing {frames:,} frames took {seconds:.2f} s and {watched['grown_mb']:.0f} MB at "
            f"the peak; of {watched['answers']} requests to `/healthz` meanwhile the slowest was "
            f"answered after {1000 * watched['slowest_s']:.0f} ms."
        )
    return " ".join(said)


@contextmanager
def _watch(http: httpx.Client, api: psutil.Process) -> Iterator[dict[str, float]]:
    """Ask for `/healthz` in turn with the process's memory until the block ends."""
    before = api.memory_info().rss
    watched = {"answers": 0, "slowest_s": 0.0, "grown_mb": 0.0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            start = time.perf_counter()
            http.get("/healthz").raise_for_status()
            watched["slowest_s"] = max(watched["slowest_s"], time.perf_counter() - start)
            watched["answers"] += 1
            grown = (api.memory_info().rss - before) / 1e6
            watched["grown_mb"] = max(watched["grown_mb"], grown)
            stop.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield watched
    finally:
        stop.set()
        thread.join()


def _fill(client: HairlineClient, storage: Path, count: int) -> str:
    """Create a data set of ``count`` labelled frames, every second one defective."""
    dataset = client.create_dataset(f"{count} frames", classes=["scratch"]).id
    scratch = Polygon("scratch", ((10.0, 10.0), (30.0, 10.0), (30.0, 20.0)))
    contents = [dump_labels(GoodFrame()), dump_labels(PolygonLabels((scratch,)))]
    engine = open_engine(Settings(storage_dir=storage))
    writes = session_factory(engine)
    for start in range(0, count, _ROWS_A_TRANSACTION):
        with writes.begin() as session:
            for number in range(start, min(start + _ROWS_A_TRANSACTION, count)):
                session.add_all(_rows(dataset, number, contents[number % 2]))
    engine.dispose()
    return dataset


def _rows(dataset: str, number: int, content: str) -> tuple[Item, Label]:
    key = f"part_{number:06}"
    digest = hashlib.sha256(f"{dataset} {number}".encode()).hexdigest()
    both = {"dataset_id": dataset, "key": key, "sha256": digest, "width": 2500, "height": 2000}
    picture = {"byte_count": 5_000_000, "channels": 1, "bit_depth": 8, "notes": []}
    classes = {"scratch": number % 2}
    return (
        Item(id=new_id("itm"), name=f"images/{key}.png", **both, **picture),
        Label(
            id=new_id("lbl"),
            name=f"labels/{key}.json",
            kind="labelme",
            classes=classes,
            content=content,
            **both,
        ),
    )
