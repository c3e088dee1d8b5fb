"""The cost benchmark measures full windows, counts memory exactly and says what it did not do."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.norm import cost
from benchmarks.norm.cost import Cell, entrants, measure_all, planned_cells
from benchmarks.norm.cost_contestants import (
    CONTESTANTS,
    Contestant,
    Entrant,
    convolution_weight_bytes,
    held_bytes,
    history_bytes,
)
from benchmarks.norm.cost_report import render, write_report
from benchmarks.norm.transcription import PlainCrossIterationBatchNorm2d
from benchmarks.quartiles import quartiles
from norm import CrossIterationBatchNorm2d, convert_batchnorm

WINDOW = 3
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks here are tiny: waking a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_body() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=4, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
    )


def cell(**changes: Any) -> Cell:
    settings: dict[str, Any] = {
        "device": "cpu",
        "precision": "float32",
        "window_size": WINDOW,
        "batch": 2,
        "height_px": 32,
        "width_px": 48,
    }
    return Cell(**{**settings, **changes})


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    absent: dict[str, str] = {}
    cells = [
        cell(),
        cell(precision="bfloat16"),
        cell(window_size=2, entry="windows"),
    ]
    found = list(measure_all(cells, cell_seconds=0, absent=absent, build_body=tiny_body))
    assert absent == {}
    return found


def run_record(cells: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    record = {
        "machine": {**cost.machine("cpu"), "load_average_before": 0.0},
        "quick": False,
        "planned_cells": len(cells),
        "absent": {},
        "cells": cells,
        "minutes": 0.1,
    }
    return {**record, **changes}


def page(**changes: Any) -> str:
    return render({"cpu": run_record(**changes)}, results_name="x.json", plot_name="x.png")


def test_every_contestant_is_measured_against_batch_normalization(
    measured: list[dict[str, Any]],
) -> None:
    everybody, in_bfloat16, other_window = (entry["contestants"] for entry in measured)
    assert list(everybody) == list(in_bfloat16) == [c.name for c in CONTESTANTS]
    assert all(row["seconds"] > 0 for row in everybody.values())
    assert everybody["bn"]["ratio"] == {"low": 1.0, "median": 1.0, "high": 1.0}
    assert set(everybody) - set(other_window) == {"gn", "brn"}
    assert all(entry["rounds"] == cost.MIN_ROUNDS for entry in measured)


def test_windows_are_full_before_the_first_measured_step() -> None:
    entered = entrants(CONTESTANTS, cell(), tiny_body, {})
    by_name = {entrant.name: entrant.body for entrant in entered}
    ring = [m for m in by_name["cbn"].modules() if isinstance(m, CrossIterationBatchNorm2d)]
    plain = [
        m
        for m in by_name["transcription"].modules()
        if isinstance(m, PlainCrossIterationBatchNorm2d)
    ]
    assert len(ring) == len(plain) == 2
    for layer in ring:
        positions = layer.state_dict()["window.positions"]
        assert len(positions) == WINDOW - 1
        assert (positions > 0).all()
    assert all(len(layer.past_weights) == WINDOW - 1 for layer in plain)


def test_memory_is_counted_in_copies_of_the_weights(measured: list[dict[str, Any]]) -> None:
    body = tiny_body()
    assert convolution_weight_bytes(body) == 4 * (64 * 3 * 49 + 64 * 64 * 9)
    unit = (WINDOW - 1) * measured[0]["weight_bytes"]
    copies = {
        name: row["extra_kept_bytes"] / unit for name, row in measured[0]["contestants"].items()
    }
    assert copies["bn"] == 0
    assert -0.01 < copies["gn"] < 0, "it has no running statistics"
    # Beside the weight-sized tensors there are a patch and a few numbers a channel.
    assert copies["cbn"] == pytest.approx(1, abs=0.06)
    assert copies["cbn history_dtype=bfloat16"] == pytest.approx(0.5, abs=0.06)
    assert copies["transcription"] == pytest.approx(3, abs=0.06)


def test_a_tensor_that_two_modules_share_is_counted_once() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(norm, nn.Sequential(norm))
    assert history_bytes(model) == held_bytes(model) == 2 * 4 * 4 + 8


def test_what_modules_hold_outside_their_buffers_is_found() -> None:
    layer = nn.ReLU()
    layer.notes = [{"seen": (torch.zeros(10)[:2],)}]  # type: ignore[assignment]
    assert history_bytes(layer) == 0
    assert held_bytes(layer) == 40, "a view keeps all ten numbers alive"


def test_every_cbn_holds_the_same_beside_its_window_as_brn() -> None:
    """The page names one number for all of them."""
    chosen = [c for c in CONTESTANTS if c.name == "brn" or c.name.startswith("cbn")]
    beside = {}
    for entrant in entrants(chosen, cell(), tiny_body, {}):
        entrant.settle(torch.randn(2, 3, 32, 32))
        beside[entrant.name] = held_bytes(entrant.body) - history_bytes(entrant.body)
    assert beside.keys() == {contestant.name for contestant in chosen}
    assert len(set(beside.values())) == 1


def test_a_model_that_never_stops_growing_is_noticed() -> None:
    class Hoarder(nn.ReLU):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(torch.zeros(1))
            return super().forward(x)

    body = nn.Sequential(nn.Conv2d(3, 1, 1))
    optimizer = torch.optim.SGD(body.parameters(), lr=1.0)
    entrant = Entrant("hoarder", nn.Sequential(body, Hoarder()), optimizer, "float32")
    with pytest.raises(RuntimeError, match="hoarder still holds more"):
        entrant.settle(torch.zeros(1, 3, 4, 4))


def test_options_that_norm_does_not_know_are_left_out_with_the_reason() -> None:
    unknown = Contestant(
        "cbn telepathic",
        True,
        lambda model, x, k: convert_batchnorm(model, x, kind="cbn", window_size=k, telepathy=1),
    )
    absent: dict[str, str] = {}
    entered = entrants([BY_NAME["bn"], unknown], cell(), tiny_body, absent)
    assert [entrant.name for entrant in entered] == ["bn"]
    assert "telepathy" in absent["cbn telepathic"]


def test_a_network_that_does_not_convert_whole_is_refused() -> None:
    def body() -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))

    with pytest.raises(RuntimeError, match=r"cbn left .* choose another network"):
        entrants([BY_NAME["cbn"]], cell(), body, {})


def test_whole_frames_are_measured_on_each_device() -> None:
    frames = {
        device: [c for c in planned_cells(device, quick=False) if c.width_px == 2500]
        for device in ("cpu", "cuda")
    }
    assert [(c.height_px, c.precision, c.batch, c.entry) for c in frames["cpu"]] == [
        (2000, "float32", 1, "served")
    ]
    assert [(c.height_px, c.precision, c.batch, c.entry) for c in frames["cuda"]] == [
        (2000, "bfloat16", 2, "all"),
        (2000, "bfloat16", 1, "all"),
    ]
    assert frames["cuda"][0].channels_last


def test_each_axis_is_walked() -> None:
    cells = planned_cells("cpu", quick=False)
    assert {c.window_size for c in cells} == {2, 4, 8, 16}
    walked = {(c.height_px, c.batch) for c in cells if c.window_size == 8 and c.entry == "all"}
    assert walked == {(px, batch) for px in (224, 448) for batch in (1, 2, 4)}


def test_small_maps_are_walked_for_whole_and_factored_slopes_alone() -> None:
    cells = cost.small_map_cells("cpu")
    walked = {(c.precision, c.height_px, c.batch) for c in cells}
    assert {("float32", 224, 1), ("float32", 448, 1), ("bfloat16", 448, 1)} <= walked
    title = page(
        cells=[
            asdict(c)
            | {
                "rounds": 1,
                "weight_bytes": 4,
                "contestants": {
                    "bn": {"seconds": 1.0, "extra_peak_bytes": None, "loss_is_finite": True}
                },
            }
            for c in cells
        ]
    ).splitlines()
    assert title[0] == "# What a training step costs on small maps"
    assert "python -m benchmarks.norm cost --small-maps --report-only" in title[4]


@pytest.mark.parametrize(
    ("entry", "admitted"),
    [
        ("small maps", set(cost.SMALL_MAPS)),
        ("served", {"bn", "brn", "cbn"}),
        ("windows", {"bn", *(c.name for c in CONTESTANTS if c.has_window)}),
        ("all", {c.name for c in CONTESTANTS}),
    ],
)
def test_a_cell_names_who_takes_part(entry: cost.Entry, admitted: set[str]) -> None:
    assert {c.name for c in CONTESTANTS if cell(entry=entry).admits(c)} == admitted


def test_quartiles_interpolate_between_rounds() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0]) == {"low": 1.75, "median": 2.5, "high": 3.25}


def test_a_run_on_one_device_keeps_the_other_devices_numbers(tmp_path: Path) -> None:
    results = tmp_path / "results" / "cost.json"
    cost._put_run(results, "cuda", {"cells": [1]})
    cost._put_run(results, "cpu", {"cells": [2]})
    cost._put_run(results, "cpu", {"cells": [3]})
    assert json.loads(results.read_text()) == {
        "runs": {"cuda": {"cells": [1]}, "cpu": {"cells": [3]}}
    }


def test_the_page_shows_times_memory_and_that_no_gpu_was_measured(
    measured: list[dict[str, Any]],
) -> None:
    text = page(cells=measured)
    ratio = measured[0]["contestants"]["transcription"]["ratio"]["median"]
    assert f"| transcription | {ratio:.2f} (" in text
    assert "| | window 2 | window 3 |" in text
    assert "Not measured: the results hold no run on a machine with a GPU." in text
    assert "interrupted" not in text
    assert "not idle" not in text
    assert "A quick run" not in text


def test_the_page_says_what_spoils_its_numbers(measured: list[dict[str, Any]]) -> None:
    spoilt = json.loads(json.dumps(measured))
    spoilt[0]["contestants"]["gn"]["loss_is_finite"] = False
    spoilt[0]["contestants"]["brn"]["held_beside_bytes"] = 7_000_000
    busy = {**cost.machine("cpu"), "load_average_before": 3.0}
    text = page(
        cells=spoilt, planned_cells=5, quick=True, machine=busy, absent={"cbn x": "unknown"}
    )
    assert "interrupted: 2 of 5 cells miss" in text
    assert "The machine was not idle when the run began." in text
    assert "A quick run, to try the benchmark: no numbers to quote." in text
    assert "Left out: `cbn x`, because unknown." in text
    assert "the loss was not finite for ['gn']" in text
    assert "`brn` comes to hold 7 MB, and so does each `cbn`" in text


def test_the_page_gives_peaks_where_they_were_counted(measured: list[dict[str, Any]]) -> None:
    counted = json.loads(json.dumps(measured[:1]))
    for row in counted[0]["contestants"].values():
        row["extra_peak_bytes"] = 5_000_000
    assert "Peak memory" not in page(cells=measured[:1])
    assert "### Peak memory beyond batch normalization's" in page(cells=counted)
    assert "| cbn | 5 MB |" in page(cells=counted)


def test_page_and_plot_are_written_beside_the_numbers(
    measured: list[dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    results = tmp_path / "cost.json"
    cost._put_run(results, "cpu", run_record(measured))
    assert write_report(results) == tmp_path / "cost.md"
    picture = (tmp_path / "cost.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000


def test_a_report_without_numbers_fails_and_names_the_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    cost.add_arguments(parser)
    missing = str(tmp_path / "none.json")
    assert cost.run(parser.parse_args(["--report-only", "--results", missing])) == 1
    assert f"{missing} is not there" in capsys.readouterr().err


def test_the_command_measures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(cost, "planned_cells", lambda device, quick: [cell(device=device)])
    measure_tiny = cost.measure_all

    def measure_tiny_bodies(cells: list[Cell], **options: Any) -> Iterator[dict[str, Any]]:
        return measure_tiny(cells, **options, build_body=tiny_body)

    monkeypatch.setattr(cost, "measure_all", measure_tiny_bodies)
    parser = argparse.ArgumentParser()
    cost.add_arguments(parser)
    results = tmp_path / "cost.json"
    options = ["--quick", "--device", "cpu", "--threads", "1", "--results", str(results)]
    assert cost.run(parser.parse_args(options)) == 0
    run = json.loads(results.read_text())["runs"]["cpu"]
    assert run["machine"]["threads"] == 1
    assert [c["window_size"] for c in run["cells"]] == [WINDOW]
    assert "cpu float32 k=3 32x48 batch 2:" in capsys.readouterr().out
