"""The standard output through a thread of its own: it may be stuck, and neither training nor saving waits for it.

A pipe that nobody reads and a terminal that was stopped hold up whoever writes, for ever. Here that is one thread. Who
says something waits until it is written while the output flows, and moves on where it does not.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

PATIENCE: Final = 0.2
"""Seconds that one piece waits to be written; where that was not enough, none waits until all is written."""
MAX_WAITING: Final = 256
"""Pieces that wait for a stuck output; the oldest are left out beyond it, and that is told."""


class Output:
    """What is written to ``sys.stdout``, in order. Safe to use from any thread."""

    def __init__(self, left_out: Callable[[int], str]) -> None:
        """*left_out* words the piece that stands for so many that were left out."""
        self._left_out = left_out
        self._change = threading.Condition()
        self._waiting: deque[str] = deque()
        self._lost = 0
        self._given = self._written = 0
        self._stuck = False
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Hand over *text*; returns once it is written, or after PATIENCE, or at once where the output is stuck."""
        with self._change:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="output", daemon=True)
                self._thread.start()
            self._waiting.append(text)
            self._given += 1
            if len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._lost += 1
                self._written += 1
            self._change.notify_all()
            if not self._stuck:
                self._stuck = not self._wait_until(self._given, PATIENCE)

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, at most *seconds*; return whether it was."""
        with self._change:
            return self._wait_until(self._given, seconds)

    def _wait_until(self, number: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._written < number:
            if (left := deadline - time.monotonic()) <= 0:
                return False
            self._change.wait(left)
        return True

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    self._stuck = False
                    self._change.wait()
                text = self._left_out(self._lost) if self._lost else ""
                text += self._waiting.popleft()
                self._lost = 0
            with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end the training
                sys.stdout.write(text)
                sys.stdout.flush()
            with self._change:
                self._written += 1
                self._change.notify_all()
