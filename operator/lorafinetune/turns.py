"""Who works now: so many passes of the loop at once, and the urgent ones first.

A pass that has made what was urgent (a pod) and has but its status to write gives way to those that have not: after a
mass preemption all replacements are asked for before it is written down why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

FAIR: Final = 16
"""Of so many turns one goes to whoever waits at the lowest rank: a storm delays the others, and never for ever."""


async def nobody_waits() -> None:
    """Give way to nobody: for a pass that is alone."""


class Rank(IntEnum):
    """Lower goes first."""

    URGENT = 0
    """A pass that may have to create or delete."""
    REST = 1
    """The rest of a pass that has given way."""
    ORDINARY = 2
    """A pass that was woken by progress or by the clock."""


class Turn:
    """One place among those that work. It is to be ended once, whatever became of the work."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._held = True

    async def give_way(self) -> None:
        """Let those go first that are urgent and wait; return with a place again."""
        if not self._turns.wanted:
            return
        self.end()
        await asyncio.sleep(0)  # whoever is about to come with something urgent comes now
        await self._turns.enter(Rank.REST)
        self._held = True

    def end(self) -> None:
        """Leave the place, if it is held: whoever is cancelled while giving way holds none."""
        if self._held:
            self._held = False
            self._turns.leave()


class Turns:
    """*places* turns at a time."""

    def __init__(self, places: int, pressing: Callable[[], bool] = lambda: False) -> None:
        """*pressing* says whether somebody urgent is on the way, who has not come to wait yet."""
        self._free = places
        self._pressing = pressing
        self._waiting: dict[Rank, deque[asyncio.Future[None]]] = {rank: deque() for rank in Rank}
        self._given = 0

    @property
    def wanted(self) -> bool:
        """Whether somebody urgent waits for a turn."""
        return self._pressing() or any(not one.done() for one in self._waiting[Rank.URGENT])

    async def take(self, rank: Rank) -> Turn:
        """Wait for a turn."""
        await self.enter(rank)
        return Turn(self)

    async def enter(self, rank: Rank) -> None:
        """Wait for a place, in the order of ranks, and within a rank in that of coming."""
        place = asyncio.get_running_loop().create_future()
        self._waiting[rank].append(place)
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # it had been given just now
            raise

    def leave(self) -> None:
        """Give a place to who is next, or free."""
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self._free and (place := self._next()) is not None:
            self._free -= 1
            self._given += 1
            place.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        """Return who is to have the next place; None if nobody waits, or a place is kept for who is on the way."""
        turned = self._given % FAIR == FAIR - 1
        for rank in sorted(Rank, reverse=turned):
            if rank is not Rank.URGENT and self._pressing() and not turned:
                return None
            while self._waiting[rank]:
                place = self._waiting[rank].popleft()
                if not place.done():
                    return place
        return None
