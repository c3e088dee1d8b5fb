"""What happens to a frame after its answer was given: nothing that the line would notice."""

from sqlalchemy import Engine

from service.serving.inference import InferenceEngine
from service.serving.kept_frames import FrameKeeper, KeptFrames
from service.serving.line_frames import Answered
from service.serving.shadow import ShadowComparison
from service.serving.shadow_process import ShadowProcess
from service.settings import Settings
from service.storage import Storage


class FollowUp:
    """Keeps frames that a deployment asks for, and shows frames to the model beside it.

    Args:
        engine: Of the database.
        storage: Of frames and bundles.
        inference: Tells whether the device is idle.
        settings: The installation's.

    Attributes:
        keeper: Keeps frames.
        shadow: Compares answers.
    """

    def __init__(
        self, engine: Engine, storage: Storage, inference: InferenceEngine, settings: Settings
    ) -> None:
        frames = KeptFrames(engine, storage)
        self.keeper = FrameKeeper(engine, frames)
        self._process = ShadowProcess(storage, settings.device, settings.shadow_niceness)
        self.shadow = ShadowComparison(
            engine, frames, self._process.ask, lambda: len(inference.queue) == 0
        )

    def offer(self, answered: Answered) -> None:
        """Take a frame whose answer is ready; returns at once, whatever becomes of it."""
        self.keeper.offer(answered)
        self.shadow.offer(answered)

    def wait(self) -> None:
        """Wait until everything that was taken has been handled."""
        self.keeper.wait()
        self.shadow.wait()

    def close(self) -> None:
        """Keep the frame in hand, and end the shadow's process whatever it is at."""
        self._process.stop()
        self.shadow.close()
        self._process.release()
        self.keeper.close()
