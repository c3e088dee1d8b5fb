"""Which labelled defects and reported regions of a frame the gallery is offered."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data import Frame
from training.class_tally import JudgedMap
from training.connected_regions import Regions
from training.gallery import FINDINGS_A_FRAME, Box, Crop, Finding, Gallery, cut_crop
from training.threshold_ladder import CHOSEN_RUNG, Climb


def offer_misses(
    gallery: Gallery, name: str, frame: Frame, judged: JudgedMap, climbed: Climb
) -> None:
    """Offer the labelled defects of one class: those not found first, lowest peak first."""
    peaks = judged.labels.peaks(judged.scores)
    is_found = climbed.found_at > CHOSEN_RUNG
    for index in np.lexsort((peaks, is_found))[:FINDINGS_A_FRAME]:
        finding = Finding(
            kind="miss",
            frame=frame.name,
            class_name=name,
            box=_box(judged.labels.boxes[index]),
            area_px=int(judged.labels.areas_px[index]),
            score=float(peaks[index]),
            is_wrong=not is_found[index],
        )
        gallery.offer(finding, lambda each: _crop(each, frame, judged))


def offer_false_alarms(
    gallery: Gallery, classes: Sequence[str], index: int, frame: Frame, judged: JudgedMap
) -> None:
    """Offer the reported regions of one class that touch none of its labelled pixels.

    Of a good frame without one, the pixel that came nearest to it is offered.

    Args:
        gallery: Receives them.
        classes: All classes.
        index: The one that ``judged`` is of.
        frame: With the labels of all classes.
        judged: The class in this frame.
    """
    reports = judged.reports
    is_false = np.ones(len(reports.areas_px), np.bool_)
    is_false[reports.region_of_pixel[judged.labelled.ravel()[reports.pixels]]] = False
    if is_false.any():
        findings = _false_alarms(reports.keep(is_false), classes, index, frame, judged)
    elif not frame.mask.any():
        findings = [_nearest_alarm(classes[index], frame, judged)]
    else:
        findings = []
    for finding in findings:
        gallery.offer(finding, lambda each: _crop(each, frame, judged))


def _false_alarms(
    false: Regions, classes: Sequence[str], index: int, frame: Frame, judged: JudgedMap
) -> list[Finding]:
    peaks = false.peaks(judged.scores)
    planes = frame.mask.reshape(-1, frame.mask.shape[2])
    findings = []
    for region in np.argsort(-peaks, kind="stable")[:FINDINGS_A_FRAME]:
        shown = planes[false.pixels[false.region_of_pixel == region]].any(axis=0)
        finding = Finding(
            kind="false_alarm",
            frame=frame.name,
            class_name=classes[index],
            box=_box(false.boxes[region]),
            area_px=int(false.areas_px[region]),
            score=float(peaks[region]),
            is_wrong=True,
            labelled_as=tuple(classes[int(other)] for other in np.flatnonzero(shown)),
        )
        findings.append(finding)
    return findings


def _nearest_alarm(name: str, frame: Frame, judged: JudgedMap) -> Finding:
    y, x = divmod(int(judged.scores.argmax()), judged.scores.shape[1])
    return Finding(
        kind="false_alarm",
        frame=frame.name,
        class_name=name,
        box=(x, y, 1, 1),
        area_px=1,
        score=float(judged.scores[y, x]),
        is_wrong=False,
    )


def _crop(finding: Finding, frame: Frame, judged: JudgedMap) -> Crop:
    return cut_crop(finding, frame.pixels, judged.labelled, judged.reported)


def _box(values: NDArray[np.int64]) -> Box:
    x, y, width, height = (int(value) for value in values)
    return (x, y, width, height)
