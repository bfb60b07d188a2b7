"""A lock between processes on this machine, with a wait that a person can read."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRESS_SECONDS = 10.0


@contextmanager
def exclusive(path: Path, what: str, say: Callable[[str], None], limit: float = 3600.0) -> Iterator[None]:
    """Hold the lock on `path` (made where missing); the kernel lets go of it when the holder ends, however it ends.

    `what` is what the other holder does, for the progress lines. Raises TimeoutError after `limit` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        begin = said = time.monotonic()
        while not _try(descriptor):
            now = time.monotonic()
            if now - begin > limit:
                raise TimeoutError(f"waited {limit:.0f} s for another process that is {what} (lock {path})")
            if now - said >= PROGRESS_SECONDS:
                said = now
                say(f"another process is {what}: waited {now - begin:.0f} s")
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
