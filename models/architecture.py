"""What the product knows of an architecture before it builds one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import nn

from models.errors import SpecError

if TYPE_CHECKING:
    from models.spec import ModelSpec

Task = Literal["segmentation", "detection"]


class Builder(Protocol):
    """Builds the network of a checked specification, with random weights."""

    def __call__(
        self,
        spec: "ModelSpec",
        *,
        class_count: int,
        in_channels: int,
        foreground_rate: Sequence[float] = (),
    ) -> nn.Module:
        """Build it.

        Args:
            spec: Names this architecture, and has passed `Architecture.check`.
            class_count: Number of defect classes, background not counted.
            in_channels: 1 for mono frames, 3 for colour.
            foreground_rate: Share of labelled pixels of each class, for the last bias; may be
                empty.

        Raises:
            SpecError: If the network can't be built all the same.
        """


def _nothing_more(_: "ModelSpec") -> None:
    """Accept whatever the declaration accepts."""


@dataclass(frozen=True)
class Architecture:
    """One design: what it answers, what may be asked of it, and how it is built.

    Attributes:
        name: As ``model.architecture`` says it.
        task: What its networks answer.
        summary: One sentence for the table in ``docs/models.md``.
        encoders: Names that ``model.encoder`` may take with it.
        options: Fields of `ModelSpec` besides architecture and encoder that it takes; any other
            must be left at its default.
        stride_px: Frames are padded to a multiple of it.
        finest_stride_px: Stride of the finest features that the encoder hands to the answer: a
            defect narrower than this is seen through them alone.
        build: Its builder.
        encoder_prefix: What the names of its encoder's tensors begin with.
        head_prefix: What the names of the tensors with one row a class begin with.
        check_more: Raises `SpecError` for what ``encoders`` and ``options`` can't say.
    """

    name: str
    task: Task
    summary: str
    encoders: tuple[str, ...]
    options: frozenset[str]
    stride_px: "Callable[[ModelSpec], int]"
    finest_stride_px: "Callable[[ModelSpec], int]"
    build: Builder
    encoder_prefix: str = "encoder."
    head_prefix: str = "segmentation_head."
    check_more: "Callable[[ModelSpec], None]" = _nothing_more

    def check(self, spec: "ModelSpec") -> None:
        """Refuse a specification that this architecture can't be built from.

        Raises:
            SpecError: It says what to change.
        """
        if spec.encoder not in self.encoders:
            raise SpecError(
                "encoder_unknown",
                f"{self.name} has no encoder {spec.encoder!r}",
                hint=f"use one of {', '.join(self.encoders)}",
            )
        for name, field in type(spec).model_fields.items():
            if name in {"architecture", "encoder"} | self.options:
                continue
            if getattr(spec, name) != field.get_default():
                raise SpecError(
                    "option_not_taken",
                    f"{name} is no option of {self.name}",
                    hint=f"leave {name} out",
                )
        self.check_more(spec)
