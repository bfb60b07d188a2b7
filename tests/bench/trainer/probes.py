"""Processes that are sent signals and tell when they were awake; this is the side that sends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

LIMIT = 30.0
"""Seconds after which a wake-up counts as missing, and what is waited for as not to come."""


class Heard(NamedTuple):
    """One signal: after how many milliseconds the thread was awake (None: not within the limit), and in what phase."""

    milliseconds: float | None
    phase: str


class Probed:
    """A running process of :mod:`tests.bench.trainer.probed`."""

    def __init__(self, what: str, environment: dict[str, str], output: Path) -> None:
        self._read, write = os.pipe()
        with output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.trainer.probed", what, str(write)],
                env={**os.environ, **environment},
                pass_fds=(write,),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        os.close(write)
        self.output = output
        self._phase = ""

    def probe(self) -> Heard | None:
        """Send SIGINT and return what was heard; None where the process came to its end meanwhile."""
        sent = time.monotonic_ns()
        self.process.send_signal(signal.SIGINT)
        while select.select([self._read], [], [], LIMIT)[0]:
            said = os.read(self._read, 4096).decode()
            if not said:
                return None
            when, _, self._phase = said.splitlines()[-1].partition(" ")
            if int(when) >= sent:  # else it is the late answer to an earlier one
                return Heard((int(when) - sent) / 1e6, self._phase)
        return Heard(None, self._phase)

    def listens(self) -> bool:
        """Whether it has its handlers already: without, a signal would end it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        return bool(caught & (1 << (signal.SIGTERM - 1)))

    def say(self, word: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def end(self) -> float:
        """Send SIGTERM and return the seconds until it has ended."""
        sent = time.monotonic()
        self.process.terminate()
        self.process.wait(2 * LIMIT)
        return time.monotonic() - sent

    def close(self) -> None:
        """End it, however it stands."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._read)


@contextlib.contextmanager
def probed(what: str, output: Path, environment: dict[str, str] | None = None) -> Iterator[Probed]:
    """Start one and wait until it listens; it ends with the block. What it prints goes to *output*."""
    made = Probed(what, environment or {}, output)
    try:
        until(made.listens, f"{what} listens")
        yield made
    finally:
        made.close()


def until(condition: Callable[[], bool], what: str, seconds: float = LIMIT) -> None:
    """Wait for *condition*; RuntimeError where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.01)
