"""Test frames with the label's outline in green and the model's in red: a look at the errors."""

from pathlib import Path

import cv2
import numpy as np

from benchmarks.quality.versions import FrozenVersion
from data import FrameDataset, Manifest
from models import FrozenModel, load_bundle

OVERLAYS = 10
_LABEL_COLOUR = (0, 255, 0)
_MODEL_COLOUR = (0, 0, 255)


def draw_overlays(run_dir: Path, version: FrozenVersion) -> None:
    """Write the first test frames into ``overlays/`` of a finished run; none of a detector yet."""
    bundle = load_bundle(run_dir / "bundle")
    if bundle.info.task == "detection":
        return
    dataset = FrameDataset(Manifest.read(version.manifest), version.root, "test", seed=0)
    model = FrozenModel(bundle)
    folder = run_dir / "overlays"
    folder.mkdir(exist_ok=True)
    for index in range(min(OVERLAYS, len(dataset))):
        frame = dataset.frame(index, 0)
        # Blue first; a mono frame is shown in grey.
        blue_first = np.broadcast_to(frame.pixels[:, :, ::-1], (*frame.mask.shape[:2], 3))
        picture = np.ascontiguousarray(blue_first)
        for plane in np.moveaxis(frame.mask, 2, 0):
            contours, _ = cv2.findContours(
                np.ascontiguousarray(plane), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            cv2.drawContours(picture, contours, -1, _LABEL_COLOUR, 3)
        for defect in model.inspect(frame.pixels).defects:
            points = np.array(defect.polygon, np.int32)[:, None]
            cv2.polylines(picture, [points], isClosed=True, color=_MODEL_COLOUR, thickness=3)
        cv2.imwrite(str(folder / f"{index:02d}.jpg"), picture)
