"""Which labelled defects are found, and which reported regions are false."""

import numpy as np

from training.regions import RegionMatch, best_min_area, match_regions


def blank() -> np.ndarray:
    return np.zeros((40, 40), np.bool_)


def test_one_shared_pixel_finds_a_defect_and_regions_elsewhere_are_false() -> None:
    labelled, reported = blank(), blank()
    labelled[5:10, 5:10] = True
    labelled[20:25, 20:25] = True
    reported[9:12, 9:12] = True
    reported[30:32, 30:32] = True
    match = match_regions(reported, labelled)
    assert sorted(match.found_by_px) == [0, 9]
    assert match.false_px == (4,)


def test_one_region_over_two_defects_finds_both() -> None:
    labelled, reported = blank(), blank()
    labelled[5, 5] = labelled[5, 15] = True
    reported[5, :] = True
    assert match_regions(reported, labelled) == RegionMatch(found_by_px=(40, 40), false_px=())


def test_empty_maps_match_nothing() -> None:
    assert match_regions(blank(), blank()) == RegionMatch(found_by_px=(), false_px=())


def test_the_minimum_area_removes_specks_but_keeps_the_defect() -> None:
    matches = [RegionMatch(found_by_px=(100,), false_px=(1, 2, 3)) for _ in range(5)]
    min_area_px, evidence = best_min_area(matches)
    assert min_area_px == 4
    assert evidence == {"labelled": 5, "found": 5, "false": 0, "f1": 1.0}


def test_large_false_regions_are_dropped_where_every_defect_is_larger_still() -> None:
    matches = [RegionMatch(found_by_px=(2000,), false_px=(700, 900)) for _ in range(5)]
    min_area_px, evidence = best_min_area(matches)
    assert min_area_px == 1024
    assert (evidence["found"], evidence["false"]) == (5, 0)


def test_without_false_regions_everything_is_reported() -> None:
    assert best_min_area([RegionMatch(found_by_px=(1, 50), false_px=())])[0] == 1
