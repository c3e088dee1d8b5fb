"""State that a checkpoint of plain batch normalization does not have."""

import logging
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger(__name__)


class OptionalState(nn.Module):
    """A module whose buffers a checkpoint holds all of or none of.

    A checkpoint of nn.BatchNorm2d has none of them; loading it is no error, it means starting over.
    """

    def reset(self) -> None:
        """Return every buffer to its value before the first iteration, in place."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            return
        logger.info("The checkpoint holds no '%s*': this state starts empty.", prefix)
        self.reset()
