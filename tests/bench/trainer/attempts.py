"""Real attempts, each a process started from nothing, and what their clocks say."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafinetune.contract.runconfig import ENV_POD_UID, ENV_RUN_CONFIG, ENV_TERMINATION_LOG, RunConfig

LIMIT = 300.0
"""Seconds after which an attempt counts as stuck."""

Mark = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Marks:
    """What one attempt's clock has said, and when the process was started."""

    started: float
    lines: tuple[Mark, ...]

    def at(self, what: str) -> float:
        """Return when *what* happened first, in seconds since the start."""
        return float(self.first(what)["at"]) - self.started

    def first(self, what: str) -> Mark:
        """Return the first line of *what*; LookupError where it did not happen."""
        for one in self.lines:
            if one["what"] == what:
                return one
        raise LookupError(f"{what!r} did not happen")

    def all(self, what: str) -> list[Mark]:
        """Return all lines of *what*."""
        return [one for one in self.lines if one["what"] == what]

    @property
    def first_step(self) -> float:
        """Seconds from the start to the end of the first step."""
        return self.at("step")

    @property
    def importing(self) -> float:
        """Seconds of importing, in its thread."""
        return self.at("imported") - self.at("import begins")

    @property
    def after_imports(self) -> float:
        """Seconds from the end of the imports to the end of the first step."""
        return self.first_step - self.at("imported")

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step but the first."""
        ends = [float(one["at"]) for one in self.all("step")]
        return [later - earlier for earlier, later in itertools.pairwise(ends)]

    @property
    def loop_seconds(self) -> float:
        """Seconds from the loop's begin to its end."""
        return self.at("loop ends") - self.at("loop begins")


class Attempts:
    """Starts attempts in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def run(self, config: RunConfig, *, stop_after: int | None = None, count: bool = False, ballast: int = 0) -> Marks:
        """Run one attempt to its end, or send it SIGTERM after a step; RuntimeError where it ends otherwise."""
        self._count += 1
        folder = self._folder / f"attempt-{self._count}"
        folder.mkdir()
        marks = folder / "marks"
        environment = {
            **os.environ,
            ENV_RUN_CONFIG: json.dumps(config.to_json()),
            ENV_TERMINATION_LOG: str(folder / "termination"),
            ENV_POD_UID: folder.name,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            "BENCH_MARKS": str(marks),
            **({"BENCH_COUNT": "1"} if count else {}),
            "BENCH_BALLAST": str(ballast),
        }
        started = time.monotonic()
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.trainer.clocked"], env=environment, stdout=output, stderr=output
            )
            try:
                if stop_after is not None:
                    _wait(process, marks, stop_after)
                    process.send_signal(signal.SIGTERM)
                code = process.wait(2 * LIMIT)
            finally:
                process.kill()
        if code not in ((75,) if stop_after is not None else (0,)):
            raise RuntimeError(f"the attempt ended with {code}: {(folder / 'output').read_text()[-2000:]}")
        return Marks(started, tuple(read(marks)))


def read(marks: Path) -> Iterator[Mark]:
    """Return the lines that a clock has written so far."""
    if marks.exists():
        for line in marks.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _wait(process: subprocess.Popen[bytes], marks: Path, step: int) -> None:
    deadline = time.monotonic() + LIMIT
    while not any(one["what"] == "step" and one["step"] >= step for one in read(marks)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"step {step} was not reached")
        time.sleep(0.02)
