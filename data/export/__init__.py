"""A data-set version as files that other tools read, and that give the same version again."""

from data.export.coco import COCO_NAME
from data.export.tar import ExportedFile, tar_size, tar_stream
from data.export.version import EXPORT_FORMATS, ExportFormat, export_files

__all__ = [
    "COCO_NAME",
    "EXPORT_FORMATS",
    "ExportFormat",
    "ExportedFile",
    "export_files",
    "tar_size",
    "tar_stream",
]
