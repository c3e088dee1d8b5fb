"""What the processor is called, which every table of times or scores names."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the model name that the machine gives itself, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        # On Linux platform.processor() is empty or says x86_64 only.
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
