"""Which loss a run trains with, as data: JSON-ready, frozen, unknown keys refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Loss(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CrossEntropyDice(_Loss):
    """Cross-entropy weighted by the root of the imbalance, plus soft Dice."""

    kind: Literal["cross_entropy_dice"] = "cross_entropy_dice"


class Focal(_Loss):
    """Focal loss plus soft Dice.

    Attributes:
        alpha: Weight of labelled pixels; of the others it is ``1 - alpha``.
        gamma: How fast pixels that are right already lose their weight; 0 is cross-entropy.
        dice_weight: Of the soft Dice; 0 leaves it out.
    """

    kind: Literal["focal"]
    alpha: Share = 0.25
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    dice_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0


class FocalTversky(_Loss):
    """Weighted cross-entropy plus the focal Tversky loss.

    Attributes:
        alpha: Weight of missed pixels in the Tversky index; above 0.5 misses cost more.
        beta: Weight of false pixels in it.
        gamma: The index's complement is raised to ``1 / gamma``; above 1 classes that are found
            badly weigh more.
    """

    kind: Literal["focal_tversky"]
    alpha: Share = 0.7
    beta: Share = 0.3
    gamma: Annotated[float, Field(ge=1, le=3)] = 4 / 3


class Boundary(_Loss):
    """The default loss plus a boundary loss whose weight grows from 0.

    Attributes:
        weight: Of the boundary loss from the end of its ramp on.
        ramp: Share of the run's steps over which the weight grows, linearly.
        reach_px: Distances from a defect's outline count up to this.
    """

    kind: Literal["boundary"]
    weight: Positive = 0.1
    ramp: Annotated[float, Field(gt=0, le=1)] = 0.5
    reach_px: Annotated[float, Field(ge=1, le=1000)] = 32.0


class HardNegatives(_Loss):
    """Cross-entropy of labelled pixels and of the hardest others, plus soft Dice.

    Attributes:
        ratio: Hardest unlabelled pixels kept a labelled one, in each frame and class.
        least: Unlabelled pixels kept in each frame and class at least, so that a frame without a
            defect teaches as well.
        dice_weight: Of the soft Dice; 0 leaves it out.
    """

    kind: Literal["hard_negatives"]
    ratio: Positive = 3.0
    least: Annotated[int, Field(ge=1)] = 1024
    dice_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0


LossSpec = Annotated[
    CrossEntropyDice | Focal | FocalTversky | Boundary | HardNegatives,
    Field(discriminator="kind"),
]
