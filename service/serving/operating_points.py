"""Other thresholds for the weights of a model: what they would come to, and a model that has them.

A run keeps the scores of its calibration and test parts (`models.part_scores`), so that nothing has
to be predicted again.  A model never changes: other thresholds are another model, of the same
weights, and the change stands in the ledger.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from models import BundleInfo, OperatingPoint, read_bundle_info
from models.bundle import INFO_NAME
from models.certificate import EscapeConstraint, parts_needed
from models.certified_point import certified_point
from models.part_scores import PartScores, rates_at, read_part_scores
from service.database.tables import Model
from service.errors import Conflict
from service.ids import new_id
from service.serving.deployment_resources import EscapeLimit, OperatingPointPreview
from service.serving.promotion import check_classes
from service.storage import Storage, disk_errors, flush_to_disk

_ON_CALIBRATION = (
    "the bounds are proven on calibration parts; escape and overkill below are counted on the test "
    "parts, which chose nothing"
)
_LOOKED_AT_SEVERAL = (
    "each bound holds by itself; who looks at several and takes the one whose overkill pleases has "
    "less confidence than stated"
)

# What a report says of the thresholds that the run chose, which others make untrue.
_OF_THRESHOLDS = frozenset({"evaluation", "statements", "unsupported", "defects_found"})


@dataclass(frozen=True)
class Evidence:
    """What is known of a model's thresholds: its description and the scores of its parts."""

    info: BundleInfo
    kept: PartScores


def read_evidence(storage: Storage, model_id: str) -> Evidence:
    """Return what other thresholds of a model would rest on.

    Raises:
        BundleError: The model's bundle is damaged.
        Conflict: Its run kept no part scores.
    """
    folder = storage.bundle_dir(model_id)
    info = read_bundle_info(folder)
    kept = read_part_scores(folder, info.weights_sha256)
    if kept is None:
        raise Conflict(
            "part_scores_missing",
            f"{model_id} has no scores of calibration parts, which other thresholds rest on: its "
            "run is older than they are",
            hint='train again, with "escape" in the job if the bound is known beforehand',
        )
    return Evidence(info, kept)


def solve(evidence: Evidence, limit: EscapeLimit) -> OperatingPoint:
    """Return the thresholds that prove a bound on escapes; a class without proof keeps its own.

    Raises:
        InvalidRequest: The limit names a class that the model does not know.
    """
    check_classes(limit, evidence.info.classes, where="/escape/per_class")

    def asked(name: str) -> EscapeConstraint:
        return EscapeConstraint(limit.rate_of(name), limit.confidence)

    # Where nothing is proven, what the run chose stays, whatever this model itself was made for.
    kept = evidence.kept
    return certified_point(kept.run_point, kept.calibration, asked, kept.areas_px)


def unproven(evidence: Evidence, point: OperatingPoint, limit: EscapeLimit) -> dict[str, int]:
    """Return the classes that a point does not prove, with the defective parts each lacks."""
    lacking = {}
    for name, chosen in point.classes.items():
        certificate = chosen.evidence.get("certificate")
        if certificate is None:
            risk = (1 - limit.confidence) / len(evidence.kept.areas_px)
            lacking[name] = parts_needed(EscapeConstraint(limit.rate_of(name), 1 - risk))
        elif not certificate["is_proven"]:
            lacking[name] = certificate["missing_parts"]
    return lacking


def preview(evidence: Evidence, limit: EscapeLimit) -> OperatingPointPreview:
    """Return what a bound on escapes would come to, beside what the model has now.

    Raises:
        InvalidRequest: The limit names a class that the model does not know.
    """
    point = solve(evidence, limit)
    return OperatingPointPreview(
        operating_point=point.model_dump(mode="json"),
        unproven=unproven(evidence, point, limit),
        now=rates_at(evidence.kept, evidence.info.operating_point),
        then=rates_at(evidence.kept, point),
        notes=(_ON_CALIBRATION, _LOOKED_AT_SEVERAL),
    )


def make_model(
    storage: Storage, model_id: str, evidence: Evidence, point: OperatingPoint
) -> tuple[str, dict[str, Any]]:
    """Write the bundle of a model with other thresholds; return its id and its metrics.

    Side effects: the bundle's directory appears whole or not at all. The weights' file is shared
    with the model it is made from, where the file system can.

    Raises:
        StorageError: The disk failed.
    """
    made_id = new_id("mdl")
    metrics = {"by_part": rates_at(evidence.kept, point)}
    info = evidence.info.model_copy(update={"operating_point": point, "metrics": metrics})
    source, target = storage.bundle_dir(model_id), storage.bundle_dir(made_id)
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        partial.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file() and path.name != INFO_NAME:
                _share(path, partial / path.name)
        written = partial / INFO_NAME
        written.write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        flush_to_disk(written)
        partial.rename(target)
        flush_to_disk(target.parent)
    return made_id, metrics


def add(
    session: Session, parent: Model, made_id: str, point: OperatingPoint, more: dict[str, Any]
) -> Model:
    """Add the row of a model that `make_model` wrote.

    Args:
        session: A writing session.
        parent: The model it was made from.
        made_id: Its id.
        point: Its thresholds.
        more: Its ``metrics`` and its ``origin``: who asked for what, and why.
    """
    row = Model(
        id=made_id,
        job_id=parent.job_id,
        version_id=parent.version_id,
        report={
            **{name: told for name, told in parent.report.items() if name not in _OF_THRESHOLDS},
            "metrics": more["metrics"],
            "operating_point": point.model_dump(mode="json"),
        },
        parent_id=parent.id,
        origin=more["origin"],
    )
    session.add(row)
    session.flush()
    return row


def refuse_unproven(lacking: dict[str, int], limit: EscapeLimit) -> None:
    """Refuse a point that does not prove what was asked of it.

    Raises:
        Conflict: It names each class and the defective parts it lacks.
    """
    if not lacking:
        return
    each = ", ".join(
        f"{name!r} lacks {missing} defective parts for {100 * limit.rate_of(name):.4g} %"
        for name, missing in lacking.items()
    )
    raise Conflict(
        "escape_not_provable",
        f"the calibration parts don't prove it: {each}",
        where="/escape",
        hint="label more defective parts, ask less of a class with per_class, or let the classes "
        "without proof keep their thresholds with keep_unproven",
    )


def _share(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        shutil.copyfile(source, target)
