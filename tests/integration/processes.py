"""Whether a process that a pod ran as is still there."""

from __future__ import annotations

import psutil


def alive(pid: int) -> bool:
    """A zombie has ended; so has one that goes away between two looks at it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
