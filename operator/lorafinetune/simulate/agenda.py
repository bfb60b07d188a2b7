"""What happens when, in virtual time: a heap of acts. Those of one instant happen in the order they were put."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

Act = Callable[[], None]


@dataclass(slots=True)
class Date:
    """One act that is to come, unless it is called off."""

    at: float
    act: Act | None

    def call_off(self) -> None:
        """See to it that it does not happen. One that has happened stays so."""
        self.act = None


@dataclass(slots=True)
class Agenda:
    """All that is to come."""

    now: float
    """Unix seconds of the present act."""
    _dates: list[tuple[float, int, Date]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def at(self, instant: float, act: Act) -> Date:
        """Have *act* happen at *instant*, or now where that has passed."""
        date = Date(max(instant, self.now), act)
        heapq.heappush(self._dates, (date.at, next(self._order), date))
        return date

    def after(self, seconds: float, act: Act) -> Date:
        """Have *act* happen in *seconds*."""
        return self.at(self.now + seconds, act)

    def step(self, until: float) -> bool:
        """Let the next act happen, unless it is later than *until*; return whether there was one."""
        while self._dates and self._dates[0][0] <= until:
            date = heapq.heappop(self._dates)[2]
            if (act := date.act) is not None:
                self.now, date.act = date.at, None
                act()
                return True
        self.now = max(self.now, until)
        return False
