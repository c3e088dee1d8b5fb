import dataclasses
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.norm.__main__ import main
from benchmarks.norm.accuracy_report import comparison_section
from benchmarks.norm.accuracy_tables import Estimate, cell_scores, compare, score_text, verdict
from benchmarks.norm.average_precision import BINS, ScoreHistogram
from benchmarks.norm.frames import read_mask
from benchmarks.norm.network import build_network
from benchmarks.norm.protocol import (
    BASE_RATES,
    CHOOSING_SEEDS,
    DESCRIPTIONS,
    METHODS,
    RATE_GRID,
    SETS,
    Cell,
    Run,
    choosing_seeds,
    chosen_rate,
    edge_mark,
    open_runs,
    plan_cells,
    rate_factor,
    runs_to_choose,
)
from benchmarks.norm.results import ResultsFile, StaleResultsError
from benchmarks.norm.single_run import training_batches
from benchmarks.norm.splits import PATCHES, Images, common_crop, load_set, set_frames
from norm import CrossIterationBatchNorm2d, convert_batchnorm

CELL = Cell("deeppcb_patches", "cbn", 2, accumulate=False)
MACHINE = {"processor": "p", "cores": 1, "device": "cpu", "torch": "2", "threads_per_run": 1}


def outcome(score: float, **others: Any) -> dict[str, Any]:
    return {
        "val_ap": score,
        "test_ap": score,
        "test_ap_recalibrated": None,
        "diverged": False,
        **others,
    }


def entries_of(cell: Cell, by_seed: dict[int, float]) -> dict[Run, dict[str, Any]]:
    """A finished cell whose best rate is the middle one."""
    middle = BASE_RATES[1]
    tried = {Run(cell, 0, rate): outcome(0.0) for rate in BASE_RATES}
    return tried | {Run(cell, seed, middle): outcome(score) for seed, score in by_seed.items()}


def test_average_precision_is_that_of_every_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    # Bin numbers, so that the histogram loses nothing, with ties among them.
    levels = torch.randint(0, BINS, (3000,), generator=generator)
    probabilities = (levels + 0.5) / BINS
    masks = (torch.rand(3000, generator=generator) < probabilities**2).to(torch.uint8)
    histogram = ScoreHistogram()
    for part in (slice(0, 1000), slice(1000, 3000)):
        histogram.add(probabilities[part], masks[part])

    expected, recall = 0.0, 0.0
    for threshold in sorted(set(levels.tolist()), reverse=True):
        named = levels >= threshold
        hits = int(masks[named].sum())
        gained = hits / int(masks.sum()) - recall
        expected += gained * hits / int(named.sum())
        recall += gained
    # Sums of a few thousand float64 terms.
    assert histogram.average_precision() == pytest.approx(expected, abs=1e-12)


def test_average_precision_without_a_defect_is_refused() -> None:
    histogram = ScoreHistogram()
    histogram.add(torch.rand(10), torch.zeros(10, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least one defective pixel"):
        histogram.average_precision()


def scores_of(by_rate: dict[float, float], seeds: int = CHOOSING_SEEDS) -> dict[Run, float]:
    return {Run(CELL, seed, rate): s for rate, s in by_rate.items() for seed in range(seeds)}


def test_the_rate_is_chosen_by_the_mean_validation_score_of_the_first_seeds() -> None:
    low, middle, high = BASE_RATES
    assert chosen_rate(CELL, scores_of({low: 0.3, middle: 0.5})) is None
    validation = scores_of({low: 0.3, middle: 0.5, high: 0.4})
    # One seed that does well with a rate does not make it the choice, nor does a later seed count.
    validation |= {Run(CELL, 0, high): 0.65, Run(CELL, CHOOSING_SEEDS, high): 0.9}
    assert chosen_rate(CELL, validation) == middle
    assert runs_to_choose(CELL, validation, CHOOSING_SEEDS) == []


def test_a_rate_is_compared_on_the_seeds_that_every_rate_was_run_with() -> None:
    low, middle, high = BASE_RATES
    validation = scores_of({low: 0.3, middle: 0.4, high: 0.5}, seeds=1)
    validation |= {Run(CELL, seed, middle): 0.9 for seed in (1, 2)}
    assert choosing_seeds(CELL, validation) == [0]
    assert chosen_rate(CELL, validation) == high
    scores = cell_scores(CELL, {run: outcome(score) for run, score in validation.items()})
    assert scores is not None
    assert scores.is_provisional
    assert "¹" in score_text(scores, 1)


@pytest.mark.parametrize(("edge", "beyond"), [(0, 0), (-1, -1)])
def test_a_choice_at_the_edge_of_the_rates_is_followed_beyond_it(edge: int, beyond: int) -> None:
    best, next_rate = BASE_RATES[edge], RATE_GRID[beyond]
    validation = scores_of(dict.fromkeys(BASE_RATES, 0.2) | {best: 0.5})
    further = [Run(CELL, seed, next_rate) for seed in range(CHOOSING_SEEDS)]
    assert list(open_runs([CELL], 4, validation, ())) == further
    assert list(open_runs([CELL], 4, validation, further)) == []
    worse = validation | scores_of({next_rate: 0.4})
    assert list(open_runs([CELL], 4, worse, ())) == [Run(CELL, 3, best)]
    better = validation | scores_of({next_rate: 0.6})
    assert list(open_runs([CELL], 4, better, ())) == [Run(CELL, 3, next_rate)]


def test_a_rate_at_the_edge_of_what_was_tried_is_marked() -> None:
    assert [edge_mark(rate, BASE_RATES) for rate in BASE_RATES] == ["↓", "", "↑"]
    assert edge_mark(BASE_RATES[-1], RATE_GRID) == ""


def test_the_rate_grows_with_the_root_of_the_images_of_a_step() -> None:
    alone = Run(CELL, 0, 1e-3)
    accumulated = Run(dataclasses.replace(CELL, accumulate=True), 0, 1e-3)
    assert alone.learning_rate == pytest.approx(1e-3 * 2**0.5)
    assert accumulated.learning_rate == pytest.approx(4e-3)
    assert accumulated.cell.optimizer_steps * 16 == alone.cell.optimizer_steps * 2


def test_other_seeds_wait_for_the_choice_of_the_rate() -> None:
    low, middle, high = BASE_RATES
    validation = scores_of({low: 0.1, middle: 0.9})
    waiting = [Run(CELL, seed, high) for seed in range(CHOOSING_SEEDS)]
    assert list(open_runs([CELL], 5, validation, ())) == waiting
    assert list(open_runs([CELL], 5, validation, waiting[:1])) == waiting[1:]
    validation |= scores_of({high: 0.5})
    assert list(open_runs([CELL], 5, validation, ())) == [Run(CELL, s, middle) for s in (3, 4)]


def test_long_frames_may_choose_by_one_seed() -> None:
    low, middle, high = BASE_RATES
    validation = scores_of({low: 0.1, middle: 0.9, high: 0.5}, seeds=1)
    opened = list(open_runs([CELL], 3, validation, (), to_choose_by=1))
    assert opened == [Run(CELL, 1, middle), Run(CELL, 2, middle)]


def test_a_batch_that_is_a_whole_step_is_not_run_twice() -> None:
    cells = plan_cells(["weld_patches", "weld_frames"], ["bn"], (2, 16), (False, True))
    assert [(cell.set_name, cell.batch, cell.accumulate) for cell in cells] == [
        ("weld_patches", 2, False),
        ("weld_patches", 2, True),
        ("weld_patches", 16, False),
        ("weld_frames", 2, False),
        ("weld_frames", 2, True),
    ]


@pytest.mark.parametrize("name", SETS)
def test_every_cell_of_a_set_sees_its_images_in_whole_steps(name: str) -> None:
    spec = SETS[name]
    for batch, accumulate in itertools.product(spec.batches, (False, True)):
        cell = Cell(name, "bn", batch, accumulate)
        assert cell.optimizer_steps * cell.images_per_step == spec.images
        assert cell.images_per_step % batch == 0


def test_the_rate_warms_up_and_comes_to_rest() -> None:
    factors = [rate_factor(step, 100) for step in range(100)]
    assert factors[:6] == sorted(factors[:6])
    assert max(factors) == factors[5] == 1.0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    # The last step of a cosine over 95 steps is one step short of zero.
    assert 0 < factors[-1] < 1e-3


def test_an_interrupted_results_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first = ResultsFile(path)
    first.open(MACHINE, "command", {})
    for rate in BASE_RATES:
        first.add(Run(CELL, 0, rate), outcome(rate), MACHINE)
    # What a killed invocation may leave beside the file.
    path.with_suffix(".partial").write_text('{"runs": {"half')

    again = ResultsFile(path)
    again.open(MACHINE, "command", {})
    again.add(Run(CELL, 0, BASE_RATES[0]), outcome(0.9), MACHINE)
    done = {run: entry["val_ap"] for run, entry in again.runs().items()}
    assert done == {Run(CELL, 0, rate): rate for rate in BASE_RATES}
    assert list(open_runs([CELL], 1, done, ())) == [Run(CELL, 0, RATE_GRID[-1])]
    assert again.read()["machines"] == [MACHINE]


def test_runs_of_another_protocol_are_refused(tmp_path: Path) -> None:
    results = ResultsFile(tmp_path / "results.json")
    results.open(MACHINE, "command", {})
    results.add(Run(CELL, 0, BASE_RATES[0]), outcome(0.5), MACHINE)
    contents = results.read()
    next(iter(contents["runs"].values()))["configuration"] = "older"
    results.path.write_text(json.dumps(contents))
    with pytest.raises(StaleResultsError, match=r"older.*--results"):
        results.runs()


@pytest.mark.parametrize("patches", [True, False])
def test_every_batch_normalization_of_the_network_converts_to_cbn(patches: bool) -> None:
    network = build_network(3, patches=patches, seed=0)
    x = torch.rand(1, 3, 64, 96)
    converted, report = convert_batchnorm(network, x, kind="cbn")
    assert 12 <= len(report.converted) <= 20
    assert report.left == ()
    assert converted(x).shape == (1, 64, 96)


def test_every_method_starts_from_the_same_weights() -> None:
    weights = []
    for kind in ("bn", "gn", "cbn"):
        network = build_network(2, patches=True, seed=1)
        convert_batchnorm(network, torch.zeros(1, 2, 64, 64), kind=kind)
        weights.append(dict(network.named_parameters()))
    for name, weight in weights[0].items():
        assert all(torch.equal(weight, other[name]) for other in weights[1:])


def test_every_batch_size_sees_the_same_images_in_the_same_order() -> None:
    pixels = list(torch.randint(0, 255, (40, 2, 64, 64), dtype=torch.uint8))
    images = Images(pixels, [image[0] // 128 for image in pixels])
    seen = []
    for batch in (1, 4):
        run = Run(Cell("deeppcb_patches", "bn", batch, accumulate=False), 3, 1e-3)
        batches = list(training_batches(images, run))
        assert all(len(x) == batch for x, _ in batches)
        seen.append(torch.cat([x for x, _ in batches]))
    assert len(seen[0]) == SETS["deeppcb_patches"].images
    assert torch.equal(seen[0], seen[1])


def test_unequal_frames_are_cropped_around_a_defect() -> None:
    wide, tall = torch.zeros(64, 160, dtype=torch.uint8), torch.zeros(128, 96, dtype=torch.uint8)
    wide[30, 150] = tall[120, 5] = 1
    pixels, masks = common_crop([wide[None], tall[None]], [wide, tall], [0.0, 0.99])
    assert masks.shape == (2, 64, 96)
    assert masks.sum((1, 2)).tolist() == [1, 1]
    assert torch.equal(pixels[:, 0], masks)


def test_a_difference_beyond_its_standard_error_has_a_verdict() -> None:
    # Differences 0.1, 0.2 and 0.3: mean 0.2, deviation 0.1, standard error 0.1 / sqrt(3).
    found = compare({0: 0.5, 1: 0.5, 2: 0.9, 7: 0.0}, {0: 0.4, 1: 0.3, 2: 0.6, 8: 1.0})
    assert found is not None
    assert found.seeds == 3
    assert found.difference.mean == pytest.approx(0.2)
    assert found.difference.standard_error == pytest.approx(0.1 / 3**0.5)
    assert found.verdict == "better"
    assert verdict(Estimate(-0.2, 0.1)) == "worse"
    assert verdict(Estimate(0.1, 0.1)) == "no difference"
    assert verdict(Estimate(0.3, None)) == "one seed, no verdict"
    assert compare({0: 0.5}, {1: 0.5}) is None


def test_the_report_pairs_seeds_and_counts_diverged_runs_as_zero() -> None:
    entries = entries_of(CELL, {0: 0.5, 1: 0.6, 2: 0.7})
    rival = dataclasses.replace(CELL, method="bn")
    entries |= entries_of(rival, {0: 0.4, 1: 0.5})
    entries[Run(rival, 2, BASE_RATES[1])] = outcome(0.0, diverged=True)
    scores = cell_scores(rival, entries)
    assert scores is not None
    assert scores.diverged == 1
    assert scores.by_seed == {0: 0.4, 1: 0.5, 2: 0.0}
    section = "\n".join(comparison_section("cbn", entries))
    assert "| deeppcb_patches | 2 | no | +0.300 ± 0.200, better | - | - |" in section
    assert "- Against bn: better in 1; +0.300 on average." in section
    assert "  - At batch 1 with a step on every image: nothing to compare." in section
    assert "  - At larger batches or with accumulation: better in 1; +0.300 on average." in section


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    status = main(["accuracy", "--datasets", str(tmp_path), "--results", str(results)])
    assert status == 2
    assert f"{tmp_path / 'weld_seg'}" in capsys.readouterr().err
    assert not results.exists()


def test_an_empty_results_file_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accuracy-report", "--results", str(tmp_path / "none.json")]) == 2
    assert "holds no runs" in capsys.readouterr().err


def test_ablations_run_only_when_named() -> None:
    ablations = {name for name, method in METHODS.items() if method.on_request}
    assert "cbn" not in ablations
    assert "cbn-untaylored" in ablations


def test_the_method_called_the_default_is_the_layers_own() -> None:
    parameters = inspect.signature(CrossIterationBatchNorm2d).parameters
    options = METHODS["cbn"].options
    assert options == {name: parameters[name].default for name in options}
    assert {"window_size", "gradient", "d_max", "r_max", "slope_positions"} <= options.keys()


def test_every_method_is_described() -> None:
    assert DESCRIPTIONS.keys() == METHODS.keys()


def test_boxes_of_a_pascal_voc_file_become_a_mask(tmp_path: Path) -> None:
    label = tmp_path / "board.xml"
    # The order of the sides is the writer's choice.
    sides = "<ymin>1</ymin><xmin>2</xmin><xmax>4</xmax><ymax>1</ymax>"
    label.write_text(f"<annotation><object><bndbox>{sides}</bndbox></object></annotation>")
    assert read_mask(label, (3, 6)).tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0], [0] * 6]


@pytest.mark.datasets
@pytest.mark.parametrize("name", SETS)
def test_splits_share_no_part(datasets_dir: Path, name: str) -> None:
    splits = set_frames(name, datasets_dir)
    parts = {split: {frame.part for frame in frames} for split, frames in splits.items()}
    for one, other in itertools.combinations(splits, 2):
        assert parts[one]
        assert parts[one].isdisjoint(parts[other])


@pytest.mark.datasets
def test_the_twins_of_the_weld_set_lie_on_one_side(datasets_dir: Path) -> None:
    splits = set_frames("weld_patches", datasets_dir)
    side = {
        int(frame.name.split("_")[0].split(".")[0]): split
        for split, frames in splits.items()
        for frame in frames
    }
    assert side[208] == side[97]
    assert side[207] == side[105]


@pytest.mark.datasets
def test_patches_are_cut_with_their_masks(datasets_dir: Path) -> None:
    images = load_set("deeppcb_patches", datasets_dir)
    for split, count in PATCHES.items():
        assert len(images[split].pixels) == count
        assert {tuple(image.shape) for image in images[split].pixels} == {(2, 64, 64)}
        near_defects = images[split].masks[: count // 2]
        assert all(mask.any() for mask in near_defects)
        # Template and image under test differ inside a box more often than elsewhere.
        pixels = torch.stack(near_defects and images[split].pixels[: count // 2]).int()
        differs = (pixels[:, 0] - pixels[:, 1]).abs() > 128
        inside = torch.stack(near_defects).bool()
        assert differs[inside].float().mean() > 5 * differs[~inside].float().mean()
