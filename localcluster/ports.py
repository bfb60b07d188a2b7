"""Free loopback ports that no other cluster of this user takes, though they are not listened on yet.

Two clusters that start at the same time would find the same free port; so each port is claimed by a lock on a file,
held by the process that owns the cluster and let go by the kernel when it ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
from pathlib import Path

from localcluster.places import cache_directory

FIRST, LAST = 20000, 31999  # below the range from which the kernel takes ports for outgoing connections
TRIES = 500


class PortClaims:
    """The ports that this process has claimed; they stay claimed until `release` or the end of the process."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or cache_directory() / "ports"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._locks: dict[int, int] = {}

    def claim(self) -> int:
        """Return a port of 127.0.0.1 on which nobody listens. Raises OSError where none is found."""
        for _ in range(TRIES):
            port = random.randint(FIRST, LAST)
            if port not in self._locks and self._lock(port):
                if _is_free(port):
                    return port
                self.release(port)
        raise OSError(f"found no free loopback port between {FIRST} and {LAST} in {TRIES} tries")

    def _lock(self, port: int) -> bool:
        descriptor = os.open(self.directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._locks[port] = descriptor
        return True

    def release(self, port: int) -> None:
        """Give a port back. The lock's file stays: removing it would race with its next owner."""
        descriptor = self._locks.pop(port, None)
        if descriptor is not None:
            os.close(descriptor)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
