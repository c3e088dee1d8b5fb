"""The encoders that segmentation networks are built on, by the product's own names."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Encoder:
    """A backbone as segmentation-models-pytorch knows it.

    Attributes:
        name: Ours, and stable.
        library_name: The library's, which has changed once already; ``tu-`` names are timm's.
        first_stride: Stride of the finest feature map that is not the frame itself.
        normalization: What it normalizes with: ``batch`` is what `norm.convert_batchnorm` is for,
            ``layer`` normalizes each position by itself and has nothing to convert.
    """

    name: str
    library_name: str
    first_stride: Literal[2, 4] = 2
    normalization: Literal["batch", "layer"] = "batch"


def _convnext(size: str) -> Encoder:
    return Encoder(f"convnext_{size}", f"tu-convnext_{size}", 4, "layer")


ENCODERS: dict[str, Encoder] = {
    encoder.name: encoder
    for encoder in (
        Encoder("resnet18", "resnet18"),
        Encoder("resnet34", "resnet34"),
        Encoder("resnet50", "resnet50"),
        Encoder("mobilenet_v2", "mobilenet_v2"),
        Encoder("mobilenet_v3_small", "tu-mobilenetv3_small_100"),
        Encoder("mobilenet_v3_large", "tu-mobilenetv3_large_100"),
        Encoder("efficientnet_b0", "efficientnet-b0"),
        Encoder("efficientnet_b1", "efficientnet-b1"),
        Encoder("efficientnet_b2", "efficientnet-b2"),
        Encoder("efficientnet_b3", "efficientnet-b3"),
        _convnext("atto"),
        _convnext("femto"),
        _convnext("pico"),
        _convnext("nano"),
        _convnext("tiny"),
    )
}
