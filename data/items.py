"""One frame of a data set with all that the product knows about it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from data.labels import Labels, is_defective

SplitName = Literal["train", "calibration", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "calibration", "test")


@dataclass(frozen=True)
class Item:
    """One frame.

    Attributes:
        name: The frame as the user knows it, unique in its data set.
        key: What it shares with its label file, see `data.layout.sample_key`.
        file: Path of the picture relative to the storage root.
        sha256: Of the picture's bytes, as lower-case hex.
        width: Pixels, after EXIF orientation.
        height: Pixels, after EXIF orientation.
        channels: 1 mono, 3 RGB.
        bit_depth: 8 or 16.
        group: Frames of one part, lot or specimen; None until `assign_splits`.
        split: None until `assign_splits`.
        labels: What is labelled, or that the frame is good.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: str
    key: str
    file: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    channels: Literal[1, 3]
    bit_depth: Literal[8, 16]
    group: str | None
    split: SplitName | None
    labels: Labels

    @property
    def is_defective(self) -> bool:
        """Whether any defect is labelled."""
        return is_defective(self.labels)
