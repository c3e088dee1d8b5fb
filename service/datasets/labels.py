"""Labels on their way between an upload, a row and a manifest."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from pydantic import TypeAdapter

from data.errors import LabelError
from data.label_files import UNDECLARED_MASK_CLASS
from data.labels import GoodFrame, Labels, MaskLabels, labelled_defects, named_classes
from service.database.tables import Item, Label
from service.ids import new_id

_CONTENT: TypeAdapter[Labels] = TypeAdapter(Labels)


def count_classes(labels: Labels, declared: Sequence[str] | None) -> dict[str, int]:
    """Return the number of defects by class name, sorted by name."""
    classes = label_classes(labels, declared)
    counts = Counter(class_name for class_name, _ in labelled_defects(labels, classes))
    return dict(sorted(counts.items()))


def label_classes(labels: Labels, declared: Sequence[str] | None) -> list[str]:
    """Return a data set's classes as one label sees them; undeclared, those it names itself."""
    if declared is not None:
        return list(declared)
    if isinstance(labels, MaskLabels):
        return [UNDECLARED_MASK_CLASS]
    return sorted(named_classes(labels))


def size_mismatch(
    size: tuple[int, int], item: Item, *, file: str | None = None, where: str | None = None
) -> LabelError:
    """Return the error for labels of another (width, height) than their frame's.

    Args:
        size: Of the labels.
        item: The frame.
        file: The label file, where the caller does not name it.
        where: The place in it.
    """
    return LabelError(
        "label_size_mismatch",
        f"The labels are for {size[0]}x{size[1]} px, the picture {item.name} has "
        f"{item.width}x{item.height} px.",
        file=file,
        where=where,
        hint="Upload the labels that were drawn on this picture; labels are never rescaled.",
    )


def good_label(item: Item) -> Label:
    """Return the label of a frame that its folder declares good."""
    content = dump_labels(GoodFrame())
    return Label(
        id=new_id("lbl"),
        dataset_id=item.dataset_id,
        name=item.name,
        key=item.key,
        kind="folder",
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        width=item.width,
        height=item.height,
        classes={},
        content=content,
    )


def dump_labels(labels: Labels) -> str:
    """Return labels as JSON for a row."""
    return _CONTENT.dump_json(labels).decode()


def load_labels(content: str) -> Labels:
    """Return the labels that `dump_labels` wrote."""
    return _CONTENT.validate_json(content)
