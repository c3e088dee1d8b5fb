import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_no_broken_input_takes_more_memory_than_the_documentation_says() -> None:
    text = (ROOT / "docs" / "data-errors.md").read_text()
    stated = re.search(r"no entry takes more than (\d+) MB", text)
    assert stated
    program = [sys.executable, "-m", "tests.corpus.peak_memory"]
    answer = subprocess.run(program, cwd=ROOT, capture_output=True, check=True)
    growth: dict[str, int] = json.loads(answer.stdout)
    assert len(growth) >= 60
    limit = int(stated[1]) * 1_000_000
    assert {name: size for name, size in growth.items() if size > limit} == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_the_measurement_sees_what_a_codec_allocates() -> None:
    program = (
        "import numpy as np\n"
        "from data import decode_image\n"
        "from tests.corpus.entries import png\n"
        "from tests.corpus.peak_memory import growth_bytes\n"
        "small, large = (png(np.zeros((side, side), np.uint8)) for side in (64, 4000))\n"
        "decode_image(small, name='a.png')\n"
        "print(growth_bytes(lambda: decode_image(large, name='a.png')))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True
    )
    assert int(answer.stdout) >= 16_000_000
