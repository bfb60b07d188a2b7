"""What was measured once or often, and what never came: the numbers behind one cell of the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured values of one kind and unit; *missing* counts what did not happen within its limit."""

    values: tuple[float, ...]
    missing: int = 0

    @classmethod
    def of(cls, measured: Iterable[float | None]) -> Self:
        """Collect values; None stands for one that did not happen."""
        every = tuple(measured)
        values = tuple(one for one in every if one is not None)
        return cls(values, len(every) - len(values))

    @property
    def median(self) -> float | None:
        """The middle value; None where there is none."""
        return statistics.median(self.values) if self.values else None

    def percentile(self, percent: float) -> float | None:
        """The smallest value that *percent* of all values do not exceed (nearest rank); None where there is none.

        Below a hundred values the 99th is the largest.
        """
        if not self.values:
            return None
        rank = max(1, math.ceil(len(self.values) * percent / 100))
        return sorted(self.values)[rank - 1]


def ratio(ours: Samples, theirs: Samples | None) -> float | None:
    """Our median over theirs: below 1 ours is the smaller. None where either is missing or theirs is nothing."""
    above, below = ours.median, theirs.median if theirs is not None else None
    return above / below if above is not None and below else None
