"""What the rows of a data set say about a file before it becomes a row itself."""

from sqlalchemy.orm import Session

from data.errors import DataError, LabelError, LayoutError
from service.database.tables import Label
from service.datasets.incoming import Sample
from service.datasets.labels import size_mismatch
from service.datasets.repository import find_item, find_item_by_content, find_label
from service.errors import FileOutcome

# A name that is refused for its length is not repeated whole in the answer.
_NAME_CHARACTERS_SHOWN = 300


def image_conflict(
    session: Session, dataset_id: str, sample: Sample, *, size: tuple[int, int] | None
) -> FileOutcome | None:
    """Return the outcome that the rows already decide for a frame, None if it may be added."""
    same_key = find_item(session, dataset_id, sample.key.key)
    if same_key is not None:
        if same_key.sha256 == sample.sha256:
            return FileOutcome(sample.name, "known", same_key.id)
        return rejected(
            sample.name,
            LayoutError(
                "duplicate_name",
                f"The data set has another picture under this name ({same_key.name}).",
                hint="Rename one of the two; or delete the older with DELETE "
                f"/datasets/{dataset_id}/items/{same_key.id} and upload again.",
            ),
        )
    same_content = find_item_by_content(session, dataset_id, sample.sha256)
    if same_content is not None:
        return rejected(
            sample.name,
            LayoutError(
                "duplicate_content",
                f"The same picture is in the data set as {same_content.name}.",
                where="whole file",
                hint="Leave one of the two out: a frame counted twice would end up in training "
                "and in the test of what was learned.",
            ),
        )
    label = find_label(session, dataset_id, sample.key.key)
    if size is None or label is None or (label.width, label.height) == size:
        return None
    return rejected(
        sample.name,
        LabelError(
            "label_size_mismatch",
            f"The picture has {size[0]}x{size[1]} px, its label {label.name} is for "
            f"{label.width}x{label.height} px.",
            hint="Upload the picture that was labelled, or delete the label with DELETE "
            f"/datasets/{dataset_id}/labels/{label.id}; labels are never rescaled.",
        ),
    )


def label_conflict(
    session: Session, dataset_id: str, sample: Sample, *, size: tuple[int, int] | None
) -> FileOutcome | None:
    """Return the outcome that the rows already decide for a label, None if it may be added."""
    item = find_item(session, dataset_id, sample.key.key)
    same_key = find_label(session, dataset_id, sample.key.key)
    if same_key is not None:
        if same_key.sha256 == sample.sha256:
            return FileOutcome(sample.name, "known", item.id if item else None)
        return rejected(sample.name, labelled_already(same_key))
    if size is None or item is None or (item.width, item.height) == size:
        return None
    return rejected(sample.name, size_mismatch(size, item))


def labelled_already(label: Label) -> LayoutError:
    """Return the error that a frame has this label, and only one can be."""
    return LayoutError(
        "duplicate_name",
        f"The frame has another label already ({label.name}).",
        hint=f"Delete the older label first: DELETE /datasets/{label.dataset_id}/labels/{label.id}",
    )


def rejected(name: str, error: DataError) -> FileOutcome:
    """Return the outcome of a file that the data room refused."""
    return FileOutcome(
        file=name[:_NAME_CHARACTERS_SHOWN],
        outcome="rejected",
        code=error.code,
        detail=error.detail,
        where=error.where or _place(error),
        hint=error.hint,
    )


def _place(error: DataError) -> str:
    """Return the place of an error that concerns no single spot of its file."""
    return "file name" if isinstance(error, LayoutError) else "whole file"
