"""Before a detector's first step: what its data allows, and anchors for the boxes that it has."""

from collections.abc import Sequence
from dataclasses import dataclass

from data import BoxSpec, Item, Manifest
from data.instances import VisibleBox, boxes_of_labels
from data.labels import BoxLabels
from models import DetectionSpec, ModelSpec
from training.config import RunConfig
from training.errors import ConfigError
from training.evenly_spread import evenly_spread
from training.events import EventLog

# Quantiles over this many frames with defects change little with more, and a mask must be read.
MEASURED_DEFECTIVE_FRAMES = 256


def check_task(manifest: Manifest, model: ModelSpec) -> None:
    """Refuse a segmentation network where nobody has said which pixels are defective.

    Raises:
        ConfigError: ``boxes_only``.
    """
    if model.task != "segmentation":
        return
    labelled = [item.labels for item in manifest.items if item.is_defective]
    if labelled and all(isinstance(labels, BoxLabels) for labels in labelled):
        raise ConfigError(
            "boxes_only",
            f"{model.architecture} learns which pixels are defective, and every defect of the "
            "version is labelled by a box",
            hint="train a detector: model.architecture fasterrcnn, retinanet or fcos; or draw "
            "outlines",
        )


def boxes_of(config: RunConfig) -> BoxSpec | None:
    """Return what boxes a run's frames carry, which only a detector asks for."""
    return BoxSpec() if config.model.task == "detection" else None


@dataclass(frozen=True)
class MeasuredBoxes:
    """The labelled boxes of evenly spread training frames with defects, drawn once for all uses.

    Attributes:
        boxes: In pixels of the native frames.
        frames: How many frames they are of.
        frames_defective: How many there are.
    """

    boxes: tuple[VisibleBox, ...]
    frames: int
    frames_defective: int


def measure_boxes(
    items: Sequence[Item], classes: tuple[str, ...], config: RunConfig
) -> MeasuredBoxes:
    """Return the boxes that anchors and the fate of small labels are judged by."""
    defective = [item for item in items if item.is_defective]
    places = evenly_spread(len(defective), MEASURED_DEFECTIVE_FRAMES)
    boxes: list[VisibleBox] = []
    for item in (defective[place] for place in places):
        boxes += boxes_of_labels(item.labels, item.width, item.height, classes, config.data.root)
    return MeasuredBoxes(tuple(boxes), len(places), len(defective))


def settle_detector(
    config: RunConfig, manifest: Manifest, measured: MeasuredBoxes, events: EventLog
) -> ModelSpec:
    """Return the detector with everything derived from the training boxes, and say what came of it.

    Raises:
        SpecError: The anchors that were asked for don't fit the network.
    """
    model = config.model
    architecture = model.architecture
    # The network sees them in pixels of the resized frame where frames are resized.
    factor = config.resize_factor
    sides = [(box.width * factor, box.height * factor) for box in measured.boxes]
    detection = (model.detection or DetectionSpec()).settle(architecture, sides)
    events.write("anchors", boxes=len(sides), **detection.model_dump(mode="json"))
    _warn_of_areas(manifest, events)
    stride_px = detection.finest_stride_px
    assert stride_px is not None
    narrow = sum(min(pair) < stride_px for pair in sides)
    if architecture == "fcos" and narrow:
        events.warning(
            "boxes_below_stride",
            f"{narrow} of {len(sides)} measured boxes are narrower than {stride_px} px as the "
            "network sees them, the finest stride: fcos learns a box only where one of its places "
            "falls into it; fasterrcnn and retinanet learn every box",
        )
    return model.model_copy(update={"detection": detection})


def _warn_of_areas(manifest: Manifest, events: EventLog) -> None:
    drawn = sum(
        item.is_defective and not isinstance(item.labels, BoxLabels) for item in manifest.items
    )
    if drawn:
        events.warning(
            "areas_as_boxes",
            f"{drawn} frames are labelled by masks or outlines; a detector learns the box around "
            "each connected region or outline",
        )
