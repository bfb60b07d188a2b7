"""The keyed work queue: a key waits once however often it is added, and is worked on by one worker at a time.

It has two lines. Urgent is what costs somebody a GPU's time: an attempt that has ended, a run that is new or being
deleted. All else (progress, the clock) waits in the other line, and leaves it for the urgent one if it turns urgent.
Within a line a key's *order* goes first, then how long it has been due: so of many runs that begin at once, one comes
to its pod before the next is begun, instead of all at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable


class WorkQueue:
    """Keys that are due. Bounded by the number of keys there are, for no key stands in it twice."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._urgent: set[str] = set()
        """Those of the waiting keys that stand in the urgent line."""
        self._order: dict[str, str] = {}
        """Of each waiting key."""
        self._busy: set[str] = set()
        self._lines = {True: _Line(), False: _Line()}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: str, after: float = 0.0, *, urgent: bool = False, order: str = "") -> None:
        """Have *key* worked on in *after* seconds, or sooner if it is due sooner already."""
        due = self._clock() + after
        known = self._due.get(key)
        if known is not None and known <= due:
            if not urgent or key in self._urgent:
                return
            due = known
        self._due[key] = due
        if urgent or key not in self._urgent:
            self._order[key] = order
        if urgent:
            self._urgent.add(key)
        if key not in self._busy:
            self._enter(key)

    def presses(self) -> bool:
        """Whether an urgent key is due."""
        line = self._lines[True]
        self._ripen(line, self._clock())
        while line.ripe and not self._stands(line.ripe[0][2], line.ripe[0][1], urgent=True):
            heapq.heappop(line.ripe)
        return bool(line.ripe)

    def _ripen(self, line: _Line, now: float) -> None:
        """Put what has come due into its order."""
        while line.later and line.later[0][0] <= now:
            due, key = heapq.heappop(line.later)
            heapq.heappush(line.ripe, (self._order.get(key, ""), due, key))

    def _stands(self, key: str, due: float, *, urgent: bool) -> bool:
        """Whether an entry of a line's heap still counts: a sooner time, the other line or done() may supersede it."""
        return self._due.get(key) == due and key not in self._busy and (key in self._urgent) == urgent

    async def take(self, *, urgent: bool) -> tuple[str, float]:
        """Wait for the next due key of one line, and keep other workers from it until :meth:`done`.

        Returns it with the seconds by which it was late.
        """
        line = self._lines[urgent]
        while True:
            now = self._clock()
            self._ripen(line, now)
            while line.ripe:
                _, due, key = heapq.heappop(line.ripe)
                if not self._stands(key, due, urgent=urgent):
                    continue
                del self._due[key], self._order[key]
                self._urgent.discard(key)
                self._busy.add(key)
                return key, now - due
            wait = line.later[0][0] - now if line.later else None
            line.changed.clear()
            # Not asyncio.wait_for: in Python 3.11 it can swallow a cancellation, and the process would never end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await line.changed.wait()

    def done(self, key: str) -> None:
        """Give *key* free; if it was added meanwhile, it is due again."""
        self._busy.discard(key)
        if key in self._due:
            self._enter(key)

    def _enter(self, key: str) -> None:
        line = self._lines[key in self._urgent]
        heapq.heappush(line.later, (self._due[key], key))
        line.changed.set()


class _Line:
    """One line: what is not due yet, by when it will be, and what is, by its order."""

    def __init__(self) -> None:
        self.later: list[tuple[float, str]] = []
        self.ripe: list[tuple[str, float, str]] = []
        self.changed = asyncio.Event()
