"""A frame that the line sent and the answer it got, for whoever looks at both afterwards."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from data.camera_buffers import decode_buffer
from data.headers import read_header
from models import BundleInfo, Inspection
from service.resources import Prediction
from service.serving.deployments import Served
from service.serving.uploaded_frame import UploadedFrame

_SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
    "image/webp": ".webp",
}


@dataclass(frozen=True)
class Answered:
    """A frame whose answer has been given.

    Attributes:
        frame: As it was sent.
        served: What it was answered with.
        prediction: The answer.
        inspection: What the model said, probabilities included.
        info: The model that said it, with the thresholds it was judged by.
    """

    frame: UploadedFrame
    served: Served
    prediction: Prediction
    inspection: Inspection
    info: BundleInfo


def picture_file(frame: UploadedFrame) -> tuple[bytes, str]:
    """Return a frame as a picture file and its media type.

    A file stays as it was sent, byte for byte. A buffer becomes a PNG file of the same pixels; a
    Bayer mosaic stays one.
    """
    if frame.layout is None:
        kind = read_header(frame.raw, name=frame.name).format.lower()
        return frame.raw, f"image/{kind}"
    layout = frame.layout
    if layout.pixel_format.startswith("Bayer"):
        depth = layout.pixel_format[len("BayerRG") :]
        layout = replace(layout, pixel_format=f"Mono{depth}")
    pixels = decode_buffer(frame.raw, layout, bayer=None).pixels
    done, encoded = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[:, :, ::-1])
    assert done  # PNG holds 8 and 16 bits, mono and colour, and a buffer holds nothing else.
    return np.asarray(encoded).tobytes(), "image/png"


def file_name(deployment: str, sha256: str, media_type: str) -> str:
    """Return the name under which a kept frame joins a data set."""
    return f"{deployment}/{sha256[:16]}{_SUFFIXES[media_type]}"
