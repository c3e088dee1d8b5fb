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
from models.errors import BundleError, FrameError, ModelsError, SpecError, WeightsError
from models.loss_spec import LossSpec
from models.losses import SegmentationLoss
from models.preprocessing import Pixels, Preprocessing, frame_to_tensor, pad_to_multiple
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
    "ClassThreshold",
    "Defect",
    "FrameError",
    "FrozenModel",
    "Inspection",
    "LossSpec",
    "ModelSpec",
    "ModelsError",
    "NormSpec",
    "OperatingPoint",
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
    "frame_probabilities",
    "frame_to_tensor",
    "library_versions",
    "load_bundle",
    "load_weights",
    "pad_to_multiple",
    "read_bundle_info",
    "read_bundle_source",
    "read_weights_file",
    "resolve_device",
    "write_bundle",
]
