"""How a run reads its frames, told to who watches: the decoded cache and the contact sheet."""

import logging

import cv2

from data import FrameCache
from data.contact_sheet import draw_contact_sheet
from data.frame_cache import choose_max_bytes
from training.batches import plan_draws
from training.config import RunConfig
from training.events import EventLog
from training.preparation import Prepared
from training.resizing import resize_frame
from training.run_directory import RunDirectory, write_whole

logger = logging.getLogger(__name__)

SHEET_FRAMES = 12


def open_cache(config: RunConfig, run: RunDirectory, events: EventLog) -> FrameCache | None:
    """Return the run's cache of decoded frames; None where it is switched off."""
    section = config.data.cache
    directory = section.directory or run.decoded
    max_bytes = choose_max_bytes(section, directory)
    return FrameCache(directory, max_bytes, events.warning) if max_bytes else None


def tell_cache(cache: FrameCache | None, events: EventLog) -> None:
    """Write what the cache holds into the events and the log."""
    if cache is None:
        return
    use = cache.use()
    events.write("cache", detail=str(use), **vars(use))
    logger.info("%s", use)


def write_contact_sheet(config: RunConfig, prepared: Prepared, run: RunDirectory) -> None:
    """Draw the first frames or windows of the first epoch, as training sees them, unless done.

    Side effects: writes ``training_frames.png`` into the run's directory, whole or not at all.
    """
    if run.training_frames.exists():
        return
    draws = [draw for batch in plan_draws(prepared.train.items, config, 0) for draw in batch]
    frames = [
        resize_frame(prepared.train.show(draw, epoch=0), config.resize_factor)
        for draw in draws[:SHEET_FRAMES]
    ]
    sheet = draw_contact_sheet(frames, prepared.manifest.classes)
    _, encoded = cv2.imencode(".png", sheet[:, :, ::-1])
    write_whole(run.training_frames, encoded.tobytes())
