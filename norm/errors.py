"""What can go wrong in this room.

NormError
├── OptionError        an option is unknown or out of range (also a ValueError)
├── BindingError       a layer cannot be bound to this convolution
├── HandoverError      a bound layer was run without its convolution's input
├── TraceError         the model could not be run on the example input
└── RecalibrationError the data does not give a layer its statistics
"""


class NormError(Exception):
    """Base of every error this room raises on purpose."""


class OptionError(NormError, ValueError):
    """An option is unknown or out of range; the message repeats the bad value."""


class BindingError(NormError):
    """A layer cannot be bound to this module; the message says what it needs."""


class HandoverError(NormError):
    """A layer that needs its convolution's input was run in training mode without it."""


class TraceError(NormError):
    """The model could not be run on the example input, so no convolution could be found."""


class RecalibrationError(NormError):
    """The data or the model gives no statistics that a layer could use; it names the layer."""
