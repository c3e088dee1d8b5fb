"""Data sets: formats, decoding, immutable versions, splits, sampling and drawn frames.

`FrameDataset` needs torch, which takes seconds to import, so it is loaded when it is first asked
for; everything else is imported at once.  The generator is `data.synthetic`.
"""

from typing import TYPE_CHECKING, Any

from data.archive import ArchiveLimits, ArchiveMember, open_archive
from data.augmentation import AugmentationSpec, CropSpec
from data.bayer import BAYER_PATTERNS, BayerPattern, decode_frame
from data.errors import (
    ArchiveError,
    DataError,
    ImageError,
    LabelError,
    LayoutError,
    ManifestError,
)
from data.folder import FolderImport, import_folder
from data.frame_cache import CacheSpec, CacheUse, FrameCache
from data.headers import ImageHeader, read_header
from data.images import DecodedImage, decode_image
from data.items import SPLIT_NAMES, Item, SplitName
from data.labelme import LabelMeFile, read_labelme
from data.labels import (
    Box,
    BoxLabels,
    GoodFrame,
    Labels,
    MaskLabels,
    Polygon,
    PolygonLabels,
    check_labels_fit,
    is_defective,
    labels_from_boxes,
    labels_from_mask,
    labels_from_polygons,
    rasterize,
)
from data.layout import SampleKey, clean_name, sample_key
from data.limits import PixelLimits
from data.manifest import Manifest
from data.masks import read_mask
from data.sampling import Draw, SamplingSpec
from data.split import SplitSpec, assign_splits
from data.statistics import ManifestStatistics
from data.voc import VocFile, read_voc
from data.yolo import read_yolo

if TYPE_CHECKING:
    from data.dataset import BoxSpec, Frame, FrameDataset

__all__ = [
    "BAYER_PATTERNS",
    "SPLIT_NAMES",
    "ArchiveError",
    "ArchiveLimits",
    "ArchiveMember",
    "AugmentationSpec",
    "BayerPattern",
    "Box",
    "BoxLabels",
    "BoxSpec",
    "CacheSpec",
    "CacheUse",
    "CropSpec",
    "DataError",
    "DecodedImage",
    "Draw",
    "FolderImport",
    "Frame",
    "FrameCache",
    "FrameDataset",
    "GoodFrame",
    "ImageError",
    "ImageHeader",
    "Item",
    "LabelError",
    "LabelMeFile",
    "Labels",
    "LayoutError",
    "Manifest",
    "ManifestError",
    "ManifestStatistics",
    "MaskLabels",
    "PixelLimits",
    "Polygon",
    "PolygonLabels",
    "SampleKey",
    "SamplingSpec",
    "SplitName",
    "SplitSpec",
    "VocFile",
    "assign_splits",
    "check_labels_fit",
    "clean_name",
    "decode_frame",
    "decode_image",
    "import_folder",
    "is_defective",
    "labels_from_boxes",
    "labels_from_mask",
    "labels_from_polygons",
    "open_archive",
    "rasterize",
    "read_header",
    "read_labelme",
    "read_mask",
    "read_voc",
    "read_yolo",
    "sample_key",
]


def __getattr__(name: str) -> Any:
    if name in ("BoxSpec", "Frame", "FrameDataset"):
        from data import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
