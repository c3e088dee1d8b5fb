"""The quality benchmark: what it runs, what it keeps, and what its page says is missing."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.__main__ import megapixels_by_set
from benchmarks.quality.outcome import failure_of, outcome_of, spent_s
from benchmarks.quality.protocol import (
    CROPS,
    NATIVE,
    NORMS,
    Cell,
    Profile,
    Run,
    plan_cells,
    plan_runs,
    run_config,
)
from benchmarks.quality.report import estimate_text, report
from benchmarks.quality.results import QualityResults
from benchmarks.quality.trainings import Share, Trainings
from benchmarks.quality.versions import FrozenVersion, MissingDatasetError, freeze
from benchmarks.runs_file import StaleResultsError
from data import Manifest
from training.config import RunConfig

MACHINE = {"processor": "p", "cores": 2, "device": "cpu", "torch": "2"}
BN = Cell("weld_seg", "bn", "crops")


def rate(events: int, n: int) -> dict[str, Any]:
    return {"events": events, "n": n, "rate": events / n if n else None, "low": 0.1, "high": 0.9}


def outcome(dice: float, minutes: float = 10.0) -> dict[str, Any]:
    return {
        "scores": {
            "dice": dice,
            "defects_found": rate(8, 10),
            "small_defects_found": rate(1, 3),
            "escape": rate(1, 9),
            "overkill": rate(0, 0),
        },
        "best_trivial": 0.1,
        "test_frames": 9,
        "steps": 300,
        "total_s": 60 * minutes,
    }


def config_of(cell: Cell, profile: Profile, area_px: float) -> RunConfig:
    config = run_config(
        Run(cell, 1),
        profile,
        mean_frame_area_px=area_px,
        manifest="/m.jsonl",
        root="/",
        data={"workers": 2},
    )
    return RunConfig.model_validate(config)


@pytest.mark.parametrize("cell", plan_cells(["weld_seg", "bsdata"], NORMS, CROPS))
def test_on_a_processor_every_run_shows_the_same_megapixels(cell: Cell) -> None:
    area_px = 1500 * 1200
    read = config_of(cell, CROPS, area_px)
    assert read.early_stopping is None
    seen_px = 448 * 448 if cell.resolution == "crops" else area_px * read.resize_factor**2
    assert read.budget.max_steps is not None
    shown = read.budget.max_steps * read.batch_size * seen_px / 1e6
    budget = CROPS.megapixels[cell.set_name]
    assert budget <= shown < budget + 2 * seen_px / 1e6


def test_at_native_size_runs_on_a_set_take_the_same_steps_and_never_step_down() -> None:
    for name in ("weld_seg", "bsdata"):
        cells = plan_cells([name], NORMS, NATIVE)
        assert [cell.resolution for cell in cells] == [*["native"] * len(NORMS), "half", "quarter"]
        configs = [config_of(cell, NATIVE, 2e6) for cell in cells]
        steps = {config.budget.max_steps for config in configs}
        assert steps == {math.ceil(NATIVE.megapixels[name] / 4)}
        assert all(config.memory.ladder == () for config in configs)


def test_a_run_that_is_cut_short_leaves_whole_seeds_and_the_longest_begin_first() -> None:
    runs = plan_runs(plan_cells(["weld_seg", "bsdata"], NORMS, NATIVE), 3, NATIVE)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    first = [run.cell for run in runs if run.seed == 0]
    assert {cell.resolution for cell in first[:8]} == {"native"}
    assert {cell.resolution for cell in first[-2:]} == {"quarter"}


@pytest.mark.parametrize("profile", [CROPS, NATIVE, CROPS.quick(), NATIVE.quick()])
def test_a_detector_is_trained_on_sets_of_boxes_on_smaller_frames_too(profile: Profile) -> None:
    cells = plan_cells(["deeppcb", "hripcb"], NORMS, profile)
    assert {cell.resolution for cell in cells} == {profile.unresized, "half", "quarter"}
    assert {config_of(cell, profile, 1e6).model.task for cell in cells} == {"detection"}


def test_the_budget_of_one_set_is_changed_without_the_others() -> None:
    assert megapixels_by_set([]) == {}
    assert megapixels_by_set(["50", "weld_seg=7"]) == {
        "weld_seg": 7,
        "bsdata": 50,
        "deeppcb": 50,
        "hripcb": 50,
    }
    for wrong in ("weld=7", "weld_seg=", "much"):
        with pytest.raises(ValueError, match=r"weld|much|convert"):
            megapixels_by_set([wrong])


@pytest.mark.parametrize("cores", [1, 3, 16])
def test_programs_at_once_share_the_cores_and_one_alone_is_as_a_user_s(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    alone = Share.of_machine(1)
    assert alone.environment() == dict(os.environ)
    assert "workers" not in alone.data_section(Path("/decoded"))
    share = Share.of_machine(6)
    assert share.threads == max(1, cores // 6)
    assert share.environment()["OMP_NUM_THREADS"] == str(share.threads)


@pytest.mark.slow
def test_a_run_that_fails_holds_up_no_other_and_a_finished_one_keeps_no_checkpoint(
    tmp_path: Path,
) -> None:
    version = FrozenVersion(tmp_path / "missing.jsonl", tmp_path, 2e6)
    trainings = Trainings(tmp_path, NATIVE, {"weld_seg": version}, Share.of_machine(2))
    failing, finished = (Run(cell, 0) for cell in plan_cells(["weld_seg"], ("cbn", "brn"), NATIVE))
    (trainings.directory(finished) / "checkpoints").mkdir(parents=True)
    (trainings.directory(finished) / "report.json").write_text("{}")
    assert dict(trainings.train([failing, finished])) == {failing: False, finished: True}
    assert "manifest_unreadable" in failure_of(trainings.directory(failing))
    assert not (trainings.directory(finished) / "checkpoints").exists()
    late = Trainings(tmp_path, NATIVE, {"weld_seg": version}, Share.of_machine(2), most_s=-1)
    assert dict(late.train([failing])) == {}


def test_a_finished_run_is_kept_and_one_of_another_protocol_is_refused(tmp_path: Path) -> None:
    results = QualityResults(tmp_path / "quality.json", CROPS)
    results.open(MACHINE, "command", {})
    results.add(Run(BN, 0), outcome(0.3), MACHINE)
    results.add(Run(BN, 0), outcome(0.9), MACHINE)
    (entry,) = QualityResults(results.path, CROPS).runs().values()
    assert entry["scores"]["dice"] == 0.3
    with pytest.raises(StaleResultsError, match="weld_seg-bn-crops-0"):
        QualityResults(results.path, CROPS.quick()).runs()


RECALIBRATED: tuple[dict[str, Any], ...] = (
    {"recalibration": {"kept": True, "frames": 5, "window_px": [448, 448]}},
    {"recalibration": {"kept": False, "frames": 3, "window_px": None}},
    # Of a results file from before this was noted.
    {},
)


def test_the_page_gives_mean_and_spread_each_runs_interval_and_what_is_missing(
    tmp_path: Path,
) -> None:
    results = QualityResults(tmp_path / "quality.json", CROPS)
    results.open(MACHINE, "command", {})
    for seed, dice in enumerate((0.2, 0.3, 0.4)):
        results.add(Run(BN, seed), outcome(dice) | RECALIBRATED[seed], MACHINE)
    page = report(results.runs(), results.read(), CROPS)
    for told in ("| 5 windows |", "| 3 frames, not kept |", "| ? |", "`?`: not noted"):
        assert told in page
    assert "| bn, crops | 3 | 0.300 ± 0.100 | 0.800 ± 0.000 |" in page
    assert "| bn, crops, seed 1 | 0.300 | 8/10 (0.10 to 0.90) |" in page
    assert "| none to judge by |" in page
    assert "- weld_seg, cbn, crops: seeds 0, 1, 2." in page
    assert "- weld_seg, bn, crops" not in page
    assert "- bsdata: everything." in page
    assert "- deeppcb: everything." in page


def test_the_rest_is_estimated_by_the_finished_runs_most_like_it() -> None:
    wanted = [
        Run(cell, seed) for cell in plan_cells(["weld_seg"], NORMS, CROPS) for seed in range(3)
    ]
    assert "when one is" in estimate_text(wanted, {})
    done = {Run(BN, 0): outcome(0.3, minutes=12), wanted[-1]: outcome(0.3, minutes=30)}
    # Eleven more on crops like the one of 12 minutes, two quarters like the one of 30, and three
    # halves like both of the set.
    left_h = (11 * 12 + 2 * 30 + 3 * 21) / 60
    text = estimate_text(wanted, done)
    assert text.startswith("2 of 18 runs are done")
    assert f"the rest takes about {left_h:.1f} h and the whole about {left_h + 0.7:.1f} h" in text
    assert estimate_text(wanted, dict.fromkeys(wanted, outcome(0.3))) == "18 of 18 runs are done."


def test_a_run_that_was_stopped_overnight_took_the_time_that_it_worked(tmp_path: Path) -> None:
    def event(kind: str, time: str) -> dict[str, Any]:
        return {"kind": kind, "time": f"2026-01-05T{time}Z"}

    events = [
        event("started", "08:00:00"),
        event("checkpoint", "08:00:50"),
        # It was stopped and went on, then killed and started anew.
        event("heartbeat", "11:00:00"),
        event("heartbeat", "11:00:05"),
        event("started", "20:00:00"),
        event("finished", "20:00:30"),
    ]
    assert spent_s(events) == 85
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    found = {"all": rate(2, 3), "by_size": [{"recall": rate(0, 1)}, {"recall": rate(2, 2)}]}
    ended = {
        "metrics": {
            "frames": 4,
            "pixels": {"any": {"dice": 0.6}},
            "escape": rate(0, 2),
            "overkill": rate(1, 2),
        },
        "defects_found": found,
        "baselines": {"all_background": {"dice": None}, "all_foreground": {"dice": 0.2}},
        "recalibration": {"kept": True, "frames": 3, "window_px": [448, 448], "layers": 30},
        "training": {"steps": 5},
        "performance": {
            "training": {"megapixels": 1.5, "seconds": 400.0},
            "prediction": {"frames_per_s": 3.0},
            "memory": {"peak_bytes": 10},
        },
        "machine": {"threads": 2},
    }
    (tmp_path / "report.json").write_text(json.dumps(ended))
    noted = outcome_of(tmp_path, "segmentation")
    assert (noted["total_s"], noted["best_trivial"]) == (85, 0.2)
    assert noted["scores"]["small_defects_found"] == rate(0, 1)
    assert noted["recalibration"] == {"kept": True, "frames": 3, "window_px": [448, 448]}


def test_a_missing_set_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingDatasetError, match="--datasets"):
        freeze("weld_seg", tmp_path, tmp_path, None)


@pytest.mark.datasets
@pytest.mark.slow
def test_no_part_is_on_both_sides_of_a_split(datasets_dir: Path, tmp_path: Path) -> None:
    version = freeze("weld_seg", datasets_dir, tmp_path, None)
    items = Manifest.read(version.manifest).items
    # Two of the photos lie in the set twice.
    assert len(items) == 116
    assert {item.split for item in items} == {"train", "calibration", "test"}
    places: dict[str | None, set[str | None]] = {}
    for item in items:
        places.setdefault(item.group, set()).add(item.split)
    assert len(places) > 10
    assert all(len(splits) == 1 for splits in places.values())
