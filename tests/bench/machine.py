"""On what, when and under which load the figures were taken: a figure without this line says nothing."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path

Load = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as it was when the bench began."""

    date: str
    cores: int
    processor: str
    load: Load
    """Load average of 1, 5 and 15 minutes."""

    @classmethod
    def look(cls) -> Machine:
        """Return what is so now."""
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        return cls(date, len(os.sched_getaffinity(0)), _processor(), os.getloadavg())

    def line(self, versions: str, load_at_end: Load) -> str:
        """Return the line that stands above the table. *versions* are those of what was measured."""
        return (
            f"{self.date}; {self.cores} cores ({self.processor}); load average at start {_loads(self.load)}, "
            f"at end {_loads(load_at_end)}; {versions}, Python {platform.python_version()}"
        )


def _loads(load: Load) -> str:
    return " ".join(f"{one:.1f}" for one in load)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
