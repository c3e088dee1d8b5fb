import pickle
import subprocess
import sys

from data import ArchiveError, DataError, ImageError, LabelError, LayoutError, ManifestError


def test_an_error_reads_as_place_fact_and_remedy() -> None:
    error = LabelError(
        "mask_value", "It is 7.", file="m.png", where="pixel (x=1, y=2)", hint="Fix."
    )
    assert str(error) == "m.png: pixel (x=1, y=2): It is 7. Fix."


def test_every_kind_of_error_crosses_a_process_boundary_whole() -> None:
    for kind in (ImageError, LabelError, LayoutError, ArchiveError, ManifestError):
        error = kind("code", "Detail.", file="f", where="line 3", hint="Hint.")
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes.
        assert isinstance(copy, DataError)
        assert type(copy) is kind
        assert vars(copy) == vars(error)
        assert str(copy) == str(error)


def test_importing_the_room_loads_none_of_the_slow_libraries() -> None:
    slow = "torch albumentations cv2 PIL tifffile imagecodecs"
    program = f"import data, sys; print([m for m in '{slow}'.split() if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert answer.stdout.decode().strip() == "[]"
