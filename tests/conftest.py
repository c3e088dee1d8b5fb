"""What every test may ask for."""

import os
from pathlib import Path

import pytest

# Threads of several torch processes that spin for each other's cores made a step on two cores 50
# times slower; sleeping threads cost a few percent.  Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A test asks for engines itself where it is about them: exporting beside each deployment would take
# the cores from what is tested.
os.environ.setdefault("HAIRLINE_PREPARE_ENGINES", "false")
# What tests say of answers and weights is meant of a processor, whatever else the machine has; a
# test of a GPU asks for it.
os.environ.setdefault("HAIRLINE_DEVICE", "cpu")
# Without a GPU its kernels run in Triton's interpreter.  Must be set before torch imports Triton,
# and so before torch can say whether there is one.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Tests that run side by side share the cores out among them, and so do the programs they start.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _PROCESSES > 1:
    _THREADS = max(1, len(os.sched_getaffinity(0)) // _PROCESSES)
    os.environ.setdefault("OMP_NUM_THREADS", str(_THREADS))

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def datasets_dir() -> Path:
    """The folder of real defect images, which lie beside the checkout and never inside it."""
    folder = Path(os.environ.get("HAIRLINE_DATASETS", REPOSITORY.parent / "shared" / "datasets"))
    if not (folder / "README.md").is_file():
        message = f"the real images are not at {folder}; set HAIRLINE_DATASETS to their folder"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
