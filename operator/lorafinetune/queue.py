"""The keyed work queue: a key waits once however often it is added, and is worked on by one worker at a time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable


class WorkQueue:
    """Keys that are due. Bounded by the number of keys there are, for no key stands in it twice."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self.waited = 0.0
        """Seconds by which the key that was taken last was late."""
        self._heap: list[tuple[float, str]] = []
        self._busy: set[str] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: str, after: float = 0.0) -> None:
        """Have *key* worked on in *after* seconds, or sooner if it is due sooner already."""
        due = self._clock() + after
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        if key not in self._busy:
            heapq.heappush(self._heap, (due, key))
            self._changed.set()

    async def take(self) -> str:
        """Wait for the next key that is due, and keep other workers from it until :meth:`done`."""
        while True:
            now = self._clock()
            while self._heap:
                due, key = self._heap[0]
                if self._due.get(key) != due or key in self._busy:
                    heapq.heappop(self._heap)  # superseded by a sooner time, or re-entered by done()
                    continue
                if due > now:
                    break
                heapq.heappop(self._heap)
                del self._due[key]
                self.waited = now - due
                self._busy.add(key)
                return key
            wait = self._heap[0][0] - now if self._heap else None
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: str) -> None:
        """Give *key* free; if it was added meanwhile, it is due again."""
        self._busy.discard(key)
        if key in self._due:
            heapq.heappush(self._heap, (self._due[key], key))
            self._changed.set()

    def forget(self, key: str) -> None:
        """Take *key* out."""
        self._due.pop(key, None)
