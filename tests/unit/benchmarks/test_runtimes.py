"""The section on runtimes says which goal an engine reached, and counts none that flips."""

from typing import Any

import torch

from benchmarks.serve.page import PAGE
from benchmarks.serve.runtimes import section
from models.engine_record import EngineMeasurement, EngineRecord, GoldenSet, Machine
from models.parity import Flip, ParityOutcome


def parity(flips: int = 0) -> ParityOutcome:
    listed = (Flip(frame="drawn 303", reference="NG (pit)", engine="OK"),) * flips
    return ParityOutcome(
        frames=9,
        flips=flips,
        listed=listed,
        largest_difference=0.02,
        largest_at="drawn 301",
        tolerance=0.1,
        smallest_margin=0.05,
    )


def engine(name: Any, times: float, outcome: ParityOutcome | None) -> EngineMeasurement:
    return EngineMeasurement(
        name=name,
        device="cpu",
        median_ms=6000 / times,
        times_faster=times,
        parity=outcome,
        refusal=None if outcome is None else outcome.refusal,
    )


def test_an_engine_that_flips_reaches_no_goal_however_fast() -> None:
    engines = (
        engine("torch-fp32", 1.0, None),
        engine("openvino-int8", 9.0, parity(flips=1)),
        engine("openvino-bf16", 3.5, parity()),
        engine("openvino-fp32", 2.0, parity()),
    )
    record = EngineRecord(
        model_digest="0" * 64,
        machine=Machine.here(torch.device("cpu")),
        frame_size=(2000, 2500),
        golden=GoldenSet(available=4, scored=0, compared=4, synthetic=5, quantized_on=12),
        engines=engines,
        chosen="openvino-bf16",
        files={},
    )
    peaks: dict[Any, int] = {"torch-fp32": 3_200_000_000}
    measured = section(record, plain=0.7, peaks=peaks, device=torch.device("cpu"))
    goals = [note for note in measured["notes"] if note.startswith("Goal")]
    assert any("5.00, reached" in goal for goal in goals)
    assert any("no such engine passed the gate" in goal for goal in goals)
    by_name = {row[0]: row for row in measured["rows"]}
    assert by_name["openvino-bf16"][2:4] == ["3.50", "5.00"]
    assert by_name["torch-fp32"][4] == "3.20"
    assert "drawn 303" in by_name["openvino-int8"][-1]
    machine = {"processor": "any", "cores": 2, "load_before": 0.1, "load_after": 0.2}
    page = PAGE.render({"runtimes": {**measured, "machine": machine, "command": "runtimes"}})
    assert "| openvino-bf16 | 1714 | 3.50 | 5.00 |" in page
