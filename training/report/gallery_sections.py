"""The worst misses and false alarms, as pictures."""

import base64
from collections.abc import Mapping
from typing import Any

from training.report.blocks import Picture, Pictures, RunRecord, Section, Sentences

_LEGEND = (
    "Left the camera's pixels, one for one; right the same with labels of the class in blue and "
    "what the model reports of it in orange. At most three of a frame and class are shown."
)
_KINDS: Mapping[str, Mapping[str, str]] = {
    "miss": {
        "title": "Worst misses",
        "wrong": "Labelled defects by their highest probability, lowest first.",
        "right": "No labelled defect was missed. These had the lowest highest probability.",
        "none": "No labelled defect is in the test frames.",
        "tag_wrong": "missed",
        "tag_right": "found",
    },
    "false_alarm": {
        "title": "Worst false alarms",
        "wrong": "Reported regions that touch no label of their class, most probable first.",
        "right": "Nothing false was reported. These unlabelled pixels of good frames came nearest.",
        "none": "Nothing false was reported, and no test frame is good.",
        "tag_wrong": "false alarm",
        "tag_right": "not reported",
    },
}
# What differs where a defect is a box.
_KINDS_OF_BOXES: Mapping[str, Mapping[str, str]] = {
    "miss": {
        **_KINDS["miss"],
        "wrong": "Labelled boxes by the score of the one that finds them (0: none), lowest first.",
        "right": "No labelled box was missed. These were found by the weakest boxes.",
        "none": "No labelled box is in the test frames.",
    },
    "false_alarm": {
        **_KINDS["false_alarm"],
        "wrong": "Reported boxes that find no label of their class, strongest first.",
        "right": "Nothing false was reported. These boxes on good frames came nearest.",
        "none": "Nothing false was reported, and there is no box on a good frame.",
    },
}


def misses(run: RunRecord) -> Section | None:
    """Return the labelled defects that the model is least sure of."""
    return _section(run, "miss")


def false_alarms(run: RunRecord) -> Section | None:
    """Return the unlabelled regions that the model is most sure of."""
    return _section(run, "false_alarm")


def _section(run: RunRecord, kind: str) -> Section | None:
    if "gallery" not in run.evaluation:
        return None
    has_boxes = run.report.get("task") == "detection"
    texts = (_KINDS_OF_BOXES if has_boxes else _KINDS)[kind]
    score_name = "score" if has_boxes else "highest probability"
    entries = [entry for entry in run.evaluation["gallery"] if entry["kind"] == kind]
    shown = [entry for entry in entries if entry["picture"] in run.pictures]
    if not entries:
        return Section(texts["title"], [Sentences([texts["none"]])])
    intro = texts["wrong" if any(entry["is_wrong"] for entry in entries) else "right"]
    point = run.report.get("operating_point", {}).get("classes", {})
    pictures = [
        _picture(
            entry,
            texts,
            run.pictures[entry["picture"]],
            point.get(entry["class_name"]),
            score_name,
        )
        for entry in shown
    ]
    return Section(texts["title"], [Sentences([f"{intro} {_LEGEND}"]), Pictures(pictures)])


def _picture(
    entry: Mapping[str, Any],
    texts: Mapping[str, str],
    content: bytes,
    chosen: Mapping[str, Any] | None,
    score_name: str,
) -> Picture:
    x, y, width, height = entry["box"]
    tag = texts["tag_wrong" if entry["is_wrong"] else "tag_right"]
    size = f"{width} x {height} px" if max(width, height) > 1 else "1 px"
    cut = ", larger than the picture" if entry["is_cut"] else ""
    labelled_as = ", ".join(entry["labelled_as"])
    other = f" (labelled as {labelled_as})" if labelled_as else ""
    threshold = f", threshold {chosen['threshold']:.3f}" if chosen else ""
    return Picture(
        data_url=f"data:image/webp;base64,{base64.b64encode(content).decode()}",
        alt=f"{entry['class_name']} in {entry['frame']}",
        tag=tag,
        is_wrong=entry["is_wrong"],
        captions=(
            f"{entry['class_name']}{other}, {score_name} {entry['score']:.3f}{threshold}",
            f"{entry['frame']} at {x}, {y}; {size}{cut}",
        ),
    )
