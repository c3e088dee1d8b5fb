"""Networks, their losses, the bundle that training hands to serving, and the frozen runtime."""

from models.architecture import Architecture, Task
from models.bundle import (
    Bundle,
    BundleInfo,
    build_network,
    library_versions,
    load_bundle,
    read_bundle_info,
    write_bundle,
)
from models.defects import ClassThreshold, Defect, OperatingPoint, Verdict, find_defects
from models.detection import label_offset
from models.detection_spec import DetectionSpec
from models.detections import (
    Candidates,
    Detections,
    frame_candidates,
    frame_detections,
    tensor_candidates,
)
from models.detector_runtime import FrozenDetector, freeze_bundle
from models.engines import Engine, EngineName
from models.errors import (
    BundleError,
    EngineError,
    FrameError,
    ModelsError,
    OutputError,
    SpecError,
    WeightsError,
)
from models.loss_spec import LossSpec
from models.losses import SegmentationLoss
from models.preprocessing import (
    Pixels,
    Preprocessing,
    frame_to_tensor,
    pad_to_multiple,
    resize_pixels,
    resized_size,
)
from models.registry import ARCHITECTURES, architecture_named, build_model, example_input
from models.runtime import FrozenModel, Inspection, frame_probabilities, resolve_device
from models.spec import ModelSpec, NormSpec
from models.weights import WeightsReport, load_weights, read_bundle_source, read_weights_file

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Bundle",
    "BundleError",
    "BundleInfo",
    "Candidates",
    "ClassThreshold",
    "Defect",
    "DetectionSpec",
    "Detections",
    "Engine",
    "EngineError",
    "EngineName",
    "FrameError",
    "FrozenDetector",
    "FrozenModel",
    "Inspection",
    "LossSpec",
    "ModelSpec",
    "ModelsError",
    "NormSpec",
    "OperatingPoint",
    "OutputError",
    "Pixels",
    "Preprocessing",
    "SegmentationLoss",
    "SpecError",
    "Task",
    "Verdict",
    "WeightsError",
    "WeightsReport",
    "architecture_named",
    "build_model",
    "build_network",
    "example_input",
    "find_defects",
    "frame_candidates",
    "frame_detections",
    "frame_probabilities",
    "frame_to_tensor",
    "freeze_bundle",
    "label_offset",
    "library_versions",
    "load_bundle",
    "load_weights",
    "pad_to_multiple",
    "read_bundle_info",
    "read_bundle_source",
    "read_weights_file",
    "resize_pixels",
    "resized_size",
    "resolve_device",
    "tensor_candidates",
    "write_bundle",
]
