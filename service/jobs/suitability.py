"""What of a job can be refused at once, before a worker has started to train."""

from sqlalchemy.orm import Session

from models import ARCHITECTURES
from service.database.tables import Version
from service.errors import InvalidRequest
from service.jobs.spec import JobSpec


def check_labels_suit(session: Session, spec: JobSpec) -> None:
    """Refuse a segmentation job on a version whose defects are all labelled by boxes.

    A version that does not exist, or was frozen before kinds of labels were counted, is let
    through: the first is refused for what it is, and the run looks at the manifest itself.

    Raises:
        InvalidRequest: ``boxes_only``.
    """
    version = session.get(Version, spec.version)
    kinds = (version.statistics.get("labels", {}) if version else {}).keys() - {"good"}
    if spec.model.task == "segmentation" and kinds == {"boxes"}:
        detectors = [a.name for a in ARCHITECTURES.values() if a.task == "detection"]
        raise InvalidRequest(
            "boxes_only",
            f"every defect of {spec.version} is labelled by a box, and {spec.model.architecture} "
            "learns which pixels are defective",
            where="/model/architecture",
            hint=f"use one of {', '.join(detectors)}; or draw outlines and freeze a new version",
        )
