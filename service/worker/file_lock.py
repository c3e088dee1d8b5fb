"""Whole-file locks that the kernel releases when their holder dies, however it dies."""

import fcntl
import os
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Return whether a living process holds the lock file, without waiting.

    The probe takes a shared lock for an instant.  A program that starts in that instant finds the
    lock held and gives up; its job then counts as interrupted and is started again.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
