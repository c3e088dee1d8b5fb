"""What a network is, as data: JSON-ready, frozen, unknown keys refused."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.architecture import Task
from models.detection_spec import DetectionSpec
from models.encoders import ENCODERS
from models.errors import SpecError
from models.registry import ARCHITECTURES, architecture_named

# A U-Net's decoder widths for an encoder of five stages, deepest first; those of a shallower
# encoder are the first of them, so that its finest map keeps enough channels for a scratch of one
# pixel.
_DEFAULT_DECODER_CHANNELS = (128, 64, 32, 16, 16)


def _one_of(names: Iterable[str]) -> Callable[[dict[str, Any]], None]:
    """Return what lists the names in a JSON schema, read when the schema is written."""
    return lambda schema: schema.update(enum=list(names))


class ModelSpec(BaseModel):
    """A network: architecture, encoder and their sizes; ``docs/models.md`` compares them.

    Attributes:
        architecture: One of `models.registry.ARCHITECTURES`; it decides the task as well.
        encoder: The backbone; nothing is downloaded.
        encoder_depth: Stages of the encoder; its deepest stride is ``2 ** encoder_depth``.
        decoder_channels: U-Net only: widths from the deepest stage up, one a stage.
        output_stride: DeepLabV3+ only: stride of the encoder's deepest map, 16 where it is left
            out; 8 keeps twice the detail at about four times the cost of the deepest stage.
        detection: Detectors only: pyramid, anchors and limits; what is left out is derived from the
            training boxes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Annotated[str, Field(json_schema_extra=_one_of(ARCHITECTURES))] = "unet"
    encoder: Annotated[str, Field(json_schema_extra=_one_of(ENCODERS))] = "resnet18"
    encoder_depth: Annotated[int, Field(ge=3, le=5)] = 5
    decoder_channels: tuple[Annotated[int, Field(ge=4, le=1024)], ...] | None = None
    output_stride: Literal[8, 16] | None = None
    detection: DetectionSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            architecture_named(self.architecture).check(self)
        except SpecError as error:
            # Pydantic turns it into an error with its place, which becomes a 422.
            raise ValueError(f"{error.detail}: {error.hint}") from error
        return self

    @property
    def task(self) -> Task:
        """What the network answers."""
        return architecture_named(self.architecture).task

    @property
    def unet_channels(self) -> tuple[int, ...]:
        """The decoder's widths in force, deepest first."""
        return self.decoder_channels or _DEFAULT_DECODER_CHANNELS[: self.encoder_depth]

    @property
    def stride_px(self) -> int:
        """Frames are padded to a multiple of this."""
        return architecture_named(self.architecture).stride_px(self)


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
        slope_rank: ``cbn`` only: keep each slope as factors of so few positions, which costs less
            on small maps.
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
    slope_rank: Annotated[int, Field(ge=1)] | None = None
    ranks: Literal["separate", "pooled"] | None = None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.kind != "cbn" and self.options:
            names = ", ".join(sorted(self.options))
            raise ValueError(f"{names}: only kind 'cbn' takes it, this is {self.kind!r}")
        if self.history == "exponential" and self.variance == "paper":
            raise ValueError("variance 'paper' is for history 'ring': leave one of them out")
        if self.history == "exponential" and self.slope_rank is not None:
            raise ValueError("slope_rank is for history 'ring': leave one of them out")
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
