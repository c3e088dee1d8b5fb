"""The layout of MVTec AD (https://www.mvtec.com/company/research/datasets/mvtec-ad).

``train/good/000.png`` and ``test/good/000.png`` are good frames, ``test/<defect>/000.png`` is a
defective one and ``ground_truth/<defect>/000_mask.png`` marks where; the folder names the class.
"""

from pathlib import PurePosixPath

from data.layout import PICTURE_SUFFIXES, SampleKey

_GOOD = "good"
_FRAMES = frozenset({"train", "test"})
_MASKS = "ground_truth"
_MASK_END = "_mask"
# Of a split, a folder and a file.
_LEAST_PARTS = 3


def mvtec_sample(path: str) -> SampleKey | None:
    """Return what a file of such a set is, None if it is neither frame nor mask."""
    pure = PurePosixPath(path)
    if len(pure.parts) < _LEAST_PARTS or pure.suffix.lower() not in PICTURE_SUFFIXES:
        return None
    *product, split, folder, _ = pure.parts
    if split in _FRAMES:
        key = "/".join([*product, split, folder, pure.stem])
        return SampleKey("image", key, is_good=folder == _GOOD)
    if split == _MASKS and pure.stem.endswith(_MASK_END):
        stem = pure.stem.removesuffix(_MASK_END)
        key = "/".join([*product, "test", folder, stem])
        return SampleKey("mask", key, class_name=folder)
    return None
