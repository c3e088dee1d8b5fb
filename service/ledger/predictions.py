"""What the ledger keeps of one inspection."""

import hashlib
import json

from models import BundleInfo
from service.ledger.chain import Entry
from service.resources import PartPrediction, Prediction

# A model gone wrong reports a thousand regions; the line's record needs to say that, not each.
_MOST_DEFECTS = 100


def prediction_body(prediction: Prediction, model: BundleInfo) -> Entry:
    """Return the entry's body: which picture, which weights, which thresholds, what they said.

    Outlines are left out, and the defects after the hundred strongest; ``defect_count`` is of all
    that the answer held.
    """
    return {
        "kind": "prediction",
        "request_id": prediction.request_id,
        "part_id": prediction.part_id,
        "image": prediction.image.model_dump(),
        "model": prediction.model.id,
        "deployment": prediction.model.deployment,
        "weights_sha256": model.weights_sha256,
        "operating_point_sha256": operating_point_sha256(model),
        "verdict": prediction.verdict,
        "defect_count": len(prediction.defects),
        "defects": [
            {
                "class": defect.class_name,
                "score": defect.score,
                "box": list(defect.box),
                "area_px": defect.area_px,
            }
            for defect in prediction.defects[:_MOST_DEFECTS]
        ],
        "timings_ms": {name: round(value, 3) for name, value in prediction.timings_ms.items()},
        "warnings": list(prediction.warnings),
    }


def part_body(part: PartPrediction, model_id: str, deployment: str | None) -> Entry:
    """Return the entry's body of a part: its verdict, and where those of its frames are."""
    return {
        "kind": "part",
        "request_id": part.request_id,
        "part_id": part.part_id,
        "model": model_id,
        "deployment": deployment,
        "verdict": part.verdict,
        "images": [image.ledger_sequence for image in part.images],
        "warnings": list(part.warnings),
    }


def operating_point_sha256(model: BundleInfo) -> str:
    """Return the digest of a model's thresholds, by which two inspections can be compared."""
    spelled = json.dumps(model.operating_point.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(spelled.encode()).hexdigest()
