"""Normalization for batches of one or two images: layers, conversion and folding.

Start at `convert_batchnorm`, which turns a model's batch normalizations into another kind and says
which convolution feeds each of them. The equations are in `functional` and `convolution_moments`.
"""

from .conversion import (
    ConversionEntry,
    ConversionReport,
    Kind,
    convert_batchnorm,
    freeze_batchnorm,
    plain_state_dict,
    restore_batchnorm,
)
from .cross_iteration import CrossIterationBatchNorm2d
from .errors import BindingError, HandoverError, NormError, OptionError, TraceError
from .folding import FoldEntry, FoldReport, fold_batchnorm
from .renorm import BatchRenorm2d
from .substitute import FrozenBatchNorm2d, GroupNorm2d

__all__ = [
    "BatchRenorm2d",
    "BindingError",
    "ConversionEntry",
    "ConversionReport",
    "CrossIterationBatchNorm2d",
    "FoldEntry",
    "FoldReport",
    "FrozenBatchNorm2d",
    "GroupNorm2d",
    "HandoverError",
    "Kind",
    "NormError",
    "OptionError",
    "TraceError",
    "convert_batchnorm",
    "fold_batchnorm",
    "freeze_batchnorm",
    "plain_state_dict",
    "restore_batchnorm",
]
