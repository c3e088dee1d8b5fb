"""Networks, their losses, the bundle that training hands to serving, and the frozen runtime."""

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
from models.errors import BundleError, FrameError, ModelsError, SpecError
from models.losses import SegmentationLoss
from models.preprocessing import (
    Pixels,
    Preprocessing,
    frame_to_tensor,
    pad_to_multiple,
    resize_pixels,
    resized_size,
)
from models.runtime import FrozenModel, Inspection, frame_probabilities, resolve_device
from models.segmentation import build_segmentation_model
from models.spec import ModelSpec, NormSpec

__all__ = [
    "Bundle",
    "BundleError",
    "BundleInfo",
    "ClassThreshold",
    "Defect",
    "FrameError",
    "FrozenModel",
    "Inspection",
    "ModelSpec",
    "ModelsError",
    "NormSpec",
    "OperatingPoint",
    "Pixels",
    "Preprocessing",
    "SegmentationLoss",
    "SpecError",
    "Verdict",
    "build_network",
    "build_segmentation_model",
    "find_defects",
    "frame_probabilities",
    "frame_to_tensor",
    "library_versions",
    "load_bundle",
    "pad_to_multiple",
    "read_bundle_info",
    "resize_pixels",
    "resized_size",
    "resolve_device",
    "write_bundle",
]
