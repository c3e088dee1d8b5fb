"""Training a detector: batches of frames with boxes, their loss, and a look at whole frames."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data import Frame
from models import (
    Candidates,
    Detections,
    ModelSpec,
    OutputError,
    Pixels,
    Preprocessing,
    frame_candidates,
    frame_detections,
    frame_to_tensor,
    label_offset,
)
from models.detections import scale_boxes
from training.average_precision import average_precision, labelled_boxes
from training.detection_evaluation import judge_frames
from training.errors import diverged
from training.task import Look


@dataclass(frozen=True)
class DetectionBatch:
    """One step's input; frames keep their sizes and are padded inside the network.

    Attributes:
        images: N of (C, H, W) float32.
        boxes: N of (M, 4) float32: left, top, right and bottom in pixels; M may be 0.
        labels: N of (M,) int64, as the network counts classes.
        padding_px: Pixels that are added to make the frames one tensor.
    """

    images: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    padding_px: int

    @property
    def frame_count(self) -> int:
        """How many frames or windows it holds."""
        return len(self.images)

    @property
    def defective_count(self) -> int:
        """How many of them show a labelled defect."""
        return sum(len(labels) > 0 for labels in self.labels)

    @property
    def pixel_count(self) -> int:
        """How many pixels the network sees, padding included."""
        return self.padding_px + self.valid_pixel_count

    @property
    def valid_pixel_count(self) -> int:
        """How many of them are no padding."""
        return sum(image.shape[1] * image.shape[2] for image in self.images)

    @property
    def weight(self) -> int:
        """A detector's losses are means over frames."""
        return self.frame_count

    def inputs(self, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Return the frames and their boxes, from which a detector computes its own losses."""
        targets = [
            {"boxes": boxes.to(device), "labels": labels.to(device)}
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        ]
        return [image.to(device) for image in self.images], targets

    def truth(self, device: torch.device) -> tuple[()]:  # noqa: ARG002 - there is nothing to move.
        """Return nothing more."""
        return ()


class DetectorLoss(nn.Module):
    """The sum of a detector's losses, as torchvision's reference training takes it."""

    def set_progress(self, progress: float) -> None:
        """Do nothing: it is the same throughout a run."""

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Return a scalar."""
        return torch.stack(list(losses.values())).sum()


class EvalDetector:
    """The training-side detector in eval mode, asked one whole frame at a time."""

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self._network = network
        self._spec = spec
        self._preprocessing = preprocessing
        self._device = device

    def detections(self, pixels: Pixels) -> Detections:
        """Return the boxes of one frame, strongest first; the network's mode is restored.

        Raises:
            DivergedError: A map or a score is no number.
        """
        was_training = self._network.training
        self._network.eval()
        try:
            answer, _ = frame_detections(
                self._network, pixels, self._spec, self._preprocessing, self._device
            )
        except OutputError as error:
            raise diverged("detections", "in eval mode") from error
        finally:
            self._network.train(was_training)
        return answer

    def candidates(self, pixels: Pixels, regions: Tensor | None = None) -> Candidates:
        """Return every score and box on one frame, see `models.detections.frame_candidates`."""
        was_training = self._network.training
        self._network.eval()
        try:
            return frame_candidates(
                self._network, pixels, self._preprocessing, self._device, regions
            )
        finally:
            self._network.train(was_training)


class DetectionTask:
    """How a detector is trained.

    Args:
        spec: The network's, with its anchors settled.
        preprocessing: The network's.
        classes: In the order of the network's labels.
        device: Where it runs.
    """

    score_name = "ap50"

    def __init__(
        self,
        spec: ModelSpec,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> None:
        assert spec.detection is not None
        self._spec = spec
        self._max_detections = spec.detection.max_detections
        self._preprocessing = preprocessing
        self._classes = classes
        self._device = device

    def collate(self, frames: Sequence[Frame]) -> DetectionBatch:
        """Return frames and the boxes of their defects; a frame without one has none."""
        images = tuple(frame_to_tensor(frame.pixels, self._preprocessing)[0] for frame in frames)
        truth = [labelled_boxes(frame, self._classes) for frame in frames]
        # A model of resized frames has them resized here, after they were varied; boxes follow.
        boxes = tuple(
            scale_boxes(labelled.boxes, _size(frame.pixels), (image.shape[1], image.shape[2]))
            for frame, labelled, image in zip(frames, truth, images, strict=True)
        )
        stride_px = self._preprocessing.stride_px
        height, width = (
            -(-max(image.shape[axis] for image in images) // stride_px) * stride_px
            for axis in (1, 2)
        )
        offset = label_offset(self._spec)
        own = sum(image.shape[1] * image.shape[2] for image in images)
        return DetectionBatch(
            images=images,
            boxes=tuple(torch.from_numpy(of_frame) for of_frame in boxes),
            labels=tuple(torch.from_numpy(labelled.classes) + offset for labelled in truth),
            padding_px=len(images) * height * width - own,
        )

    def look(self, network: nn.Module, frames: Iterable[Frame]) -> Look:
        """Return the average precision at an overlap of 0.5 on whole frames."""
        model = EvalDetector(network, self._spec, self._preprocessing, self._device)
        judged = judge_frames(model, frames, self._classes)
        scores = average_precision(judged, self._classes, max_detections=self._max_detections)
        by_class = {name: entry["ap50"] for name, entry in scores["classes"].items()}
        return Look(self.score_name, scores["ap50"], by_class)


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]
