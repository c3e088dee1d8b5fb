"""What a detector can't be trained with yet; a job and a run's configuration both ask here."""

from models.loss_spec import CrossEntropyDice, LossSpec


def check_detector_wishes(
    architecture: str,
    loss: LossSpec,
    *,
    asks_tiles: bool,
) -> None:
    """Refuse what is for segmentation alone.

    Args:
        architecture: The detector's.
        loss: The one that is asked for.
        asks_tiles: Whether frames are to be looked at in tiles.

    Raises:
        ValueError: With the remedy.
    """
    if asks_tiles:
        raise ValueError(
            "a detector's boxes compete over the whole frame; leave memory.look_tile_px out"
        )
    if loss != CrossEntropyDice():
        raise ValueError(
            f"loss {loss.kind!r} is for pixels, {architecture} has losses of its own; leave loss "
            "out"
        )
