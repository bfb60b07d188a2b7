"""The guard of a simulation: an engine that goes round in a circle is stopped, and named."""

from __future__ import annotations

from typing import Final

RESTLESS: Final = 100
"""Looks at a run in one instant that are too many."""


class WorldError(AssertionError):
    """The engine did something that it must never do; the message says what, and when."""


class Circles:
    """Counts the looks at one run in one instant."""

    def __init__(self) -> None:
        self._last = ("", 0.0)
        self._count = 0

    def watch(self, run: str, seconds: float, reason: str) -> None:
        """Note a look at *run*, *seconds* after the start, which ended with *reason*; raises WorldError."""
        self._count = self._count + 1 if (run, seconds) == self._last else 1
        self._last = (run, seconds)
        if self._count > RESTLESS:
            raise WorldError(f"{run}, {seconds:.0f} s: {self._count} looks without rest ({reason})")
