"""How many bytes of a base model this attempt has fetched: none too many, after a preemption."""

from __future__ import annotations

import threading


class Traffic:
    """A count that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fetched = 0
        """Bytes."""

    def add(self, count: int) -> None:
        """Count *count* more bytes."""
        with self._lock:
            self.fetched += count
