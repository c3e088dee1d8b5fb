"""How much memory a process may take: the device's, a container's, or what the run was given."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryLimit:
    """What this process may hold at its peak.

    Attributes:
        limit_bytes: Of resident memory on a CPU, of the device's memory on a GPU.
        source: Where it comes from, in words.
    """

    limit_bytes: int
    source: str


def memory_limit(device: torch.device, asked_bytes: int | None) -> MemoryLimit:
    """Return the least of what was asked for, the machine's free memory and the container's.

    What this process holds already counts as free.
    """
    limits = [MemoryLimit(asked_bytes, "memory.limit_bytes")] if asked_bytes else []
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        own_bytes = torch.cuda.memory_reserved(device)
        limits.append(MemoryLimit(free_bytes + own_bytes, "free memory of the GPU"))
        return min(limits, key=lambda limit: limit.limit_bytes)
    own_bytes = resident_bytes()
    available_bytes = psutil.virtual_memory().available + own_bytes
    limits.append(MemoryLimit(available_bytes, "free memory of the machine"))
    container_bytes = _cgroup_free_bytes()
    if container_bytes is not None:
        limits.append(MemoryLimit(container_bytes + own_bytes, "free memory of the container"))
    return min(limits, key=lambda limit: limit.limit_bytes)


def resident_bytes() -> int:
    """Return the memory this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes(device: torch.device) -> int:
    """Return the most that this process has held, of the device that it trains on.

    ``ru_maxrss`` would count what a parent process held before this program replaced it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return resident_bytes()


def forget_peak() -> None:
    """Let `peak_bytes` begin anew, where the kernel allows it."""
    # A run on a processor takes nothing of a GPU that is there.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def kernel_memory_kills() -> int | None:
    """Return how many processes the kernel has killed for memory since it started, if it tells."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except OSError:
        return None
    return None


def boot_id() -> str:
    """Return what names this run of the kernel; empty where it tells nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _cgroup_free_bytes() -> int | None:
    """Return what the control groups of this process leave free; None without a limit."""
    free = [
        amount
        for directory, limit_name, used_name in _cgroup_files()
        if (amount := _free(directory, limit_name, used_name)) is not None
    ]
    return min(free, default=None)


def _cgroup_files() -> list[tuple[Path, str, str]]:
    """Return the groups to look at, from the process's own up to the root."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        relative = Path(path.lstrip("/"))
        # A container often sees its own group as the root, whatever its path is called outside.
        found += [(root / part, *names) for part in (relative, *relative.parents)]
    return found


def _free(directory: Path, limit_name: str, used_name: str) -> int | None:
    try:
        limit = (directory / limit_name).read_text().strip()
        used_bytes = int((directory / used_name).read_text())
        statistics = (directory / "memory.stat").read_text()
    except OSError:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit == "max" or int(limit) >= total:
        return None
    # The kernel gives the cache of files back before it kills.
    for line in statistics.splitlines():
        name, _, amount = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            used_bytes -= int(amount)
            break
    return int(limit) - used_bytes
