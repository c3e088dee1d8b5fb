"""Which device a run's process works on, and how precisely."""

import torch

from models import resolve_device
from training.config import RunConfig
from training.errors import ConfigError


def device_of(config: RunConfig, rank: int) -> torch.device:
    """Return the device of one of a run's processes.

    Raises:
        ConfigError: This machine has no such device, or too few of them.
    """
    try:
        device = resolve_device(config.device)
    except RuntimeError as error:
        raise ConfigError(
            "device_unknown", f"there is no device {config.device!r}", hint="use auto, cpu or cuda"
        ) from error
    if config.devices > 1 and device.index is not None:
        raise ConfigError(
            "device_named",
            f"device {config.device!r} is one device, and devices asks for {config.devices}",
            hint="use device auto or cuda, which takes the first ones, or devices 1",
        )
    if device.type != "cuda":
        return device
    present = torch.cuda.device_count()
    if (device.index or 0) >= present:
        raise ConfigError(
            "device_missing",
            f"device {config.device!r} is asked for, this machine has {present} GPUs",
            hint="use auto, or cpu",
        )
    if config.devices > present:
        raise ConfigError(
            "device_missing",
            f"{config.devices} devices are asked for, this machine has {present} GPUs",
            hint="use fewer devices and more accumulation_steps",
        )
    return device if config.devices == 1 else torch.device("cuda", rank)


def precision_of(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return torch.bfloat16 for autocast, or torch.float32; ``auto`` takes what a GPU has."""
    if config.precision == "float32":
        return torch.float32
    if config.precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32
