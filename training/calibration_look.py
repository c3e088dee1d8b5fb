"""How good the network is on the calibration frames, at each class's best threshold."""

from training.eval_forward import EvalForward
from training.evaluation import score_histograms, whole_frames
from training.preparation import Prepared


def calibration_dice(prepared: Prepared) -> dict[str, float | None]:
    """Return the best pixel Dice of each class, None for one that no frame shows.

    Raises:
        DivergedError: A probability is no number.
    """
    forward = EvalForward(prepared.network, prepared.preprocessing, prepared.device)
    histograms = score_histograms(
        forward, whole_frames(prepared.calibration), tuple(prepared.manifest.classes)
    )
    return {name: histogram.best_dice()[0] for name, histogram in histograms.items()}


def mean_dice(by_class: dict[str, float | None]) -> float | None:
    """Return the mean over the classes that are shown, None if there is none."""
    known = [score for score in by_class.values() if score is not None]
    return sum(known) / len(known) if known else None
