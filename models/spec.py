"""What a network is, as data: JSON-ready, frozen, unknown keys refused."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Architecture = Literal["unet", "fpn"]
Encoder = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
]

# A U-Net's decoder widths for an encoder of five stages, deepest first; those of a shallower
# encoder are the first of them, so that its finest map keeps enough channels for a scratch of one
# pixel.
_DEFAULT_DECODER_CHANNELS = (128, 64, 32, 16, 16)


class ModelSpec(BaseModel):
    """A segmentation network: architecture, encoder and their sizes.

    Attributes:
        architecture: ``unet`` keeps the finest detail, ``fpn`` is lighter at its output (stride 4).
        encoder: The backbone; it starts from random weights, nothing is downloaded.
        encoder_depth: Stages of the encoder; its deepest stride is ``2 ** encoder_depth``.
        decoder_channels: U-Net only: widths from the deepest stage up, one a stage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture = "unet"
    encoder: Encoder = "resnet18"
    encoder_depth: Annotated[int, Field(ge=3, le=5)] = 5
    decoder_channels: tuple[Annotated[int, Field(ge=4, le=1024)], ...] | None = None

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        channels = self.decoder_channels
        if self.architecture == "fpn" and channels is not None:
            raise ValueError("decoder_channels belongs to a unet; leave it out for an fpn")
        if channels is not None and len(channels) != self.encoder_depth:
            raise ValueError(
                f"decoder_channels has {len(channels)} widths, encoder_depth asks for "
                f"{self.encoder_depth}"
            )
        return self

    @property
    def unet_channels(self) -> tuple[int, ...]:
        """The decoder's widths in force, deepest first."""
        return self.decoder_channels or _DEFAULT_DECODER_CHANNELS[: self.encoder_depth]

    @property
    def stride_px(self) -> int:
        """Frames are padded to a multiple of this."""
        # An FPN's pyramid is built on strides up to 32 whatever the depth.
        return 32 if self.architecture == "fpn" else 2**self.encoder_depth


class NormSpec(BaseModel):
    """Which normalization replaces batch normalization, and its options.

    Attributes:
        kind: ``cbn``, ``brn``, ``bn``, ``gn`` or ``frozen``, see ``norm.convert_batchnorm``; or
            ``auto``, which `for_batch` makes one of them.
        window_size: ``cbn`` only: how many iterations are pooled.
        burn_in_steps: ``cbn`` only: optimizer steps before the window is used.
        variance: ``cbn`` only: ``centred`` or ``paper``.
        gradient: ``cbn`` only: ``full`` or ``paper``.
        d_max: ``cbn`` only: trust region of the past means, in today's deviations.
        r_max: ``cbn`` only: trust region of the past deviations, as a factor.
        history: ``cbn`` only: ``ring``, or ``exponential`` for a long memory at the cost of one
            iteration's.
        slope_positions: ``cbn`` only: output positions that the variance's slope is computed from.
        ranks: ``cbn`` only: with several devices, ``separate`` windows or ``pooled`` ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "cbn", "brn", "bn", "gn", "frozen"] = "auto"
    window_size: Annotated[int, Field(ge=1, le=64)] | None = None
    burn_in_steps: Annotated[int, Field(ge=0)] | None = None
    variance: Literal["centred", "paper"] | None = None
    gradient: Literal["full", "paper"] | None = None
    d_max: Annotated[float, Field(ge=0)] | None = None
    r_max: Annotated[float, Field(ge=1)] | None = None
    history: Literal["ring", "exponential"] | None = None
    slope_positions: Annotated[int, Field(ge=1)] | None = None
    ranks: Literal["separate", "pooled"] | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.kind != "cbn" and self.options:
            names = ", ".join(sorted(self.options))
            raise ValueError(f"{names}: only kind 'cbn' takes it, this is {self.kind!r}")
        if self.history == "exponential" and self.variance == "paper":
            raise ValueError("variance 'paper' is for history 'ring': leave one of them out")
        return self

    def for_batch(self, images: int) -> Self:
        """Return the normalization in force for optimizer steps of so many images.

        ``auto`` is ``cbn`` for steps of a single image and ``bn`` from two on, whether they come in
        one batch, one after the other, or on several devices, which is what the measured accuracy
        speaks for (docs/decisions/0012).
        """
        if self.kind != "auto":
            return self
        return self.model_copy(update={"kind": "cbn" if images == 1 else "bn"})

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given, as ``norm.convert_batchnorm`` takes them."""
        return self.model_dump(exclude={"kind"}, exclude_none=True)
