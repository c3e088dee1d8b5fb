"""What can be exported, and what is said of what can't."""

import pytest

from models import (
    BundleInfo,
    ClassThreshold,
    DetectionSpec,
    EngineError,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
)
from models.exporting import check_exportable


def test_a_detector_is_not_exported_and_the_error_says_what_serves_it() -> None:
    spec = ModelSpec(architecture="fcos", encoder="resnet18", detection=DetectionSpec())
    info = BundleInfo(
        task="detection",
        classes=("pit",),
        model=spec,
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(0.0,), std=(1.0,), stride_px=spec.stride_px
        ),
        operating_point=OperatingPoint(classes={"pit": ClassThreshold()}),
        dataset_digest="0" * 64,
    )
    with pytest.raises(EngineError, match="torch serves it") as refused:
        check_exportable(info)
    assert refused.value.code == "detector_not_exported"
