"""Answers that are good for a while: a wave of runs that share a bucket and a data set asks once.

Only good news is kept: what was refused is asked anew each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

GOOD_SECONDS: Final = 30.0
MAX_ANSWERS: Final = 4096

_T = TypeVar("_T")


class Lately:
    """Remembers what questions were answered with in the last seconds. Safe to use from several threads."""

    def __init__(self, seconds: float = GOOD_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._answers: dict[Hashable, tuple[float, Any]] = {}

    def ask(self, question: Hashable, answer: Callable[[], _T]) -> _T:
        """Return what *question* was answered with lately, else *answer* it; what that raises is not kept."""
        known = self._answers.get(question)
        now = self._clock()
        if known is not None and now - known[0] < self._seconds:
            found: _T = known[1]
            return found
        found = answer()
        if len(self._answers) >= MAX_ANSWERS:
            self._answers = {}  # rare, and costs no more than asking again
        self._answers[question] = (now, found)
        return found
