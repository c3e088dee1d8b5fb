"""What can be wrong with a model, its bundle or a frame shown to it.

ModelsError
├── SpecError    no such network can be built
├── BundleError  a bundle on disk is missing, damaged or of another format
├── WeightsError a file of weights can't be read, or does not fit the network
├── FrameError   the frame does not suit the model
├── OutputError  the model answered with what is no answer
└── EngineError  the model can't be exported, or what it was exported to can't be used
"""


class ModelsError(Exception):
    """An error of this room: what happened and what to do about it."""

    def __init__(
        self, code: str, detail: str, *, file: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.file = file
        self.hint = hint


class SpecError(ModelsError):
    """No such network can be built."""


class BundleError(ModelsError):
    """A bundle on disk is missing, damaged or of another format."""


class WeightsError(ModelsError):
    """A file of weights can't be read, or does not fit the network."""


class FrameError(ModelsError):
    """The frame does not suit the model."""


class OutputError(ModelsError):
    """The model answered with what is no answer."""


class EngineError(ModelsError):
    """The model can't be exported, or what it was exported to can't be used."""
