"""How well a detector's boxes fit over all thresholds, beside what needs no training."""

from training.report.blocks import RunRecord, Section, Table
from training.report.score_sections import number


def boxes(run: RunRecord) -> Section | None:
    """Return average precision by class; None of a run that has no boxes."""
    scores = run.metrics.get("boxes")
    if scores is None:
        return None
    rows = [
        [name, str(each["labelled"]), number(each["ap50"]), number(each["ap50_95"])]
        for name, each in scores["classes"].items()
    ]
    rows.append(["mean", "", number(scores["ap50"]), number(scores["ap50_95"])])
    caption = (
        "Average precision over all scores as COCO defines it: at an overlap of 0.5, and the mean "
        "over 0.5 to 0.95. A class that no test frame shows has none and no part in the mean."
    )
    table = Table(("class", "labelled", "AP50", "AP50:95"), rows, caption)
    whole = run.report.get("baselines", {}).get("whole_frame")
    blocks = [table]
    if whole is not None:
        trivial = [
            ["no box", number(0.0), number(0.0)],
            ["one box as large as the frame", number(whole["ap50"]), number(whole["ap50_95"])],
        ]
        blocks.append(Table(("without training", "AP50", "AP50:95"), trivial))
    return Section("Boxes", [*blocks])
