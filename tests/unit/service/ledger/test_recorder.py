"""A disk that stalls makes entries late, and no answer."""

import time
from pathlib import Path

import pytest

from models import BundleInfo, ModelSpec, NormSpec, OperatingPoint, Preprocessing
from service.ledger.journal import Ledger, Retention, entries_after
from service.ledger.recorder import PredictionRecorder
from service.resources import PredictedBy, PredictedImage, Prediction

# Of a machine that is busy with other tests; a stalled disk takes longer still.
PATIENCE_S = 20.0


@pytest.fixture
def model() -> BundleInfo:
    return BundleInfo(
        classes=("pit",),
        model=ModelSpec(),
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(0.0,), std=(1.0,), stride_px=32
        ),
        operating_point=OperatingPoint(classes={}),
        dataset_digest="0" * 64,
    )


def answer(request_id: str) -> Prediction:
    return Prediction(
        verdict="OK",
        defects=(),
        image=PredictedImage(width=1, height=1, sha256="0" * 64),
        model=PredictedBy(id="mdl_a", deployment=None, operating_point={}),
        timings_ms={},
        warnings=(),
        pictures={},
        request_id=request_id,
    )


def test_an_answer_that_is_due_does_not_wait_for_a_stalled_disk_and_its_entry_follows(
    tmp_path: Path, model: BundleInfo
) -> None:
    recorder = PredictionRecorder(tmp_path, Retention())
    assert recorder.record(answer("req_1"), model).ledger_sequence == 1
    ledger = recorder._ledger
    assert isinstance(ledger, Ledger)
    # Whoever holds this lock is writing; a disk that stalls holds it as long as it stalls.
    with ledger._guard:
        begin_s = time.perf_counter()
        late = recorder.record(answer("req_2"), model, by_s=begin_s + 0.1)
        assert 0.1 <= time.perf_counter() - begin_s < PATIENCE_S
        assert late.ledger_sequence is None
        assert "the disk stalls" in late.warnings[-1]
    # One that is not due waits its turn, behind the entry that follows.
    assert recorder.record(answer("req_3"), model).ledger_sequence == 3
    recorder.close()
    kept = [entry["request_id"] for entry in entries_after(tmp_path, 0, limit=9)]
    assert kept == ["req_1", "req_2", "req_3"]
