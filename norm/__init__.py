"""Normalization for batches of one or two images: layers, conversion and folding.

Start at `convert_batchnorm`, which turns a model's batch normalizations into another kind and says
which convolution feeds each of them; after training, `recalibrate` measures the statistics that
inference uses. The equations are in `functional` and `convolution_moments`.
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
from .errors import (
    BindingError,
    HandoverError,
    NormError,
    OptionError,
    RecalibrationError,
    TraceError,
)
from .folding import FoldEntry, FoldReport, fold_batchnorm
from .fused_window import missing_kernels
from .rank_statistics import RankStatistics
from .recalibration import (
    RecalibratedLayer,
    RecalibrationReport,
    UntouchedLayer,
    recalibrate,
)
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
    "RankStatistics",
    "RecalibratedLayer",
    "RecalibrationError",
    "RecalibrationReport",
    "TraceError",
    "UntouchedLayer",
    "convert_batchnorm",
    "fold_batchnorm",
    "freeze_batchnorm",
    "missing_kernels",
    "plain_state_dict",
    "recalibrate",
    "restore_batchnorm",
]
