"""A frame as its sender sent it: a picture's file, or a camera's buffer."""

from dataclasses import dataclass

from data.bayer import BayerPattern, decode_frame
from data.camera_buffers import BufferLayout, decode_buffer
from data.images import DecodedImage


@dataclass(frozen=True)
class UploadedFrame:
    """A frame's bytes and what they are.

    Attributes:
        name: As the sender calls it.
        raw: A picture's file, or a buffer.
        layout: Of a buffer; None for a file.
    """

    name: str
    raw: bytes
    layout: BufferLayout | None = None

    def decode(self, bayer: BayerPattern | None) -> DecodedImage:
        """Return its pixels, demosaiced if frames are declared to be mosaics.

        Raises:
            ImageError: It is no picture, or not such a one.
        """
        if self.layout is None:
            return decode_frame(self.raw, name=self.name, bayer=bayer)
        return decode_buffer(self.raw, self.layout, bayer=bayer)
