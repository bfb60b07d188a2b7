"""What the demo writes: sections and sentences with the elapsed time, commands, and kubectl's own rows."""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from typing import TextIO

GUTTER = 7
"""Columns on the left for the elapsed time."""
WIDTH = 110


class Screen:
    """Writes line by line, from several threads; the same on a terminal, in a pipe and in a CI log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        terminal = self._stream.isatty()
        self._bold, self._plain = ("\033[1m", "\033[0m") if terminal else ("", "")
        self._width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if terminal else WIDTH
        self.broken = False
        """Whether nobody reads any more."""
        self._told = False

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    def section(self, title: str) -> None:
        """Begin a section."""
        self._write(f"\n{self._bold}{self._time()}{title}{self._plain}\n")

    def say(self, text: str) -> None:
        """Write a sentence or two, with the time."""
        self._write(self._wrapped(text, self._time()))

    def note(self, text: str) -> None:
        """Write more on what was said last, without the time."""
        self._write(self._wrapped(text, " " * GUTTER))

    def command(self, text: str) -> None:
        """Write a command that is run now, or that can be run by whoever reads it; never wrapped."""
        self._write(f"{' ' * GUTTER}$ {text}\n")

    def row(self, text: str) -> None:
        """Write a line as a program said it; never wrapped."""
        self._write(f"{' ' * GUTTER}{text.rstrip()}\n")

    def _wrapped(self, text: str, first: str) -> str:
        rest = " " * GUTTER
        lines = textwrap.wrap(
            text, self._width, initial_indent=first, subsequent_indent=rest, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        return "\n".join(lines) + "\n"

    def _time(self) -> str:
        minutes, seconds = divmod(int(self.elapsed), 60)
        return f"{minutes:>3}:{seconds:02} "

    def _write(self, text: str) -> None:
        with self._lock:
            if not self.broken:
                try:
                    self._stream.write(text)
                    self._stream.flush()
                except OSError:
                    self.broken = True
        if self.broken and not self._told and threading.current_thread() is threading.main_thread():
            self._told = True  # once: what is said while ending must not end the ending
            raise BrokenPipeError("nobody reads what the demo writes")
