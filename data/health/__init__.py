"""What is wrong with a data-set version, told before hours are spent on it.

`check_health` looks at the manifest and, as far as `measure_item` was called, at the pictures.
"""

from data.health.findings import MOST_EXAMPLES, Example, FileProblem, Finding, finding
from data.health.measurement import METHOD, FrameMeasurement, measure_item, measure_pixels
from data.health.report import DEFAULT_STRIDE_PX, check_health

__all__ = [
    "DEFAULT_STRIDE_PX",
    "METHOD",
    "MOST_EXAMPLES",
    "Example",
    "FileProblem",
    "Finding",
    "FrameMeasurement",
    "check_health",
    "finding",
    "measure_item",
    "measure_pixels",
]
