"""What all runs together know of each pool: who is on it, when it last gave a node, when it last took one back.

It is a fold over the runs' statuses, so it costs nothing per pass, and an operator that has been restarted has it
again from what is written down. Counts of the living come from the pods instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import exp2
from operator import attrgetter
from typing import Final

TAKEN_FADES: Final = 1800.0
"""Half-life in seconds of the penalty for taking a node: half of the real traces' dry spells are over after 29 minutes,
and an hour after a take a zone is as likely to have capacity (44 %) as four hours after (49 %)."""
RATES_FADE: Final = 172_800.0
"""Half-life in seconds of rates (lifetime, waits): two days after, the traces' zones still resemble themselves, with
capacity in 79 % of cases where they had it, and in 43 % where they had not."""
FIRST_PAUSE: Final = 600.0
"""Seconds for which a dry pool is not tried again. Of the traces' dry spells, two in five end within the next ten
minutes while they are young, and one in fourteen once they have lasted an hour: so the pause doubles."""
MAX_PAUSE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Fading:
    """A sum of which old parts count less and less."""

    total: float = 0.0
    when: float = 0.0

    def at(self, now: float, half_life: float) -> float:
        """Return what is left of it at *now*."""
        return self.total * exp2(-max(0.0, now - self.when) / half_life)

    def plus(self, amount: float, when: float, half_life: float) -> Fading:
        """Return the sum with *amount*, which came at *when*: in whatever order, the result is the same."""
        if when >= self.when:
            return Fading(self.at(when, half_life) + amount, when)
        return Fading(self.total + Fading(amount, when).at(self.when, half_life), self.when)


@dataclass(frozen=True, slots=True)
class PoolKnown:
    """What is known of one pool. Its name is its key in :data:`Fleet`."""

    live: int = 0
    """Attempts of all runs that are on it, or wait for a node of it."""
    waiting: int = 0
    """Those of them that have no node yet."""
    holders: tuple[str, ...] = ()
    """The first few of the live ones, as namespace/pod."""
    placed: float | None = None
    """When it last gave a node to an attempt, Unix seconds."""
    taken: float | None = None
    """When it last took one back."""
    dry: float | None = None
    """When it was last found to have no capacity; None once it has given a node since."""
    dry_since: float = 0.0
    """Since when the attempt that found it so had waited: of several, the last to come tells."""
    why: str = ""
    """The platform's words for that, where it said any."""
    tries: int = 0
    """Times that it was found so since it last gave a node, each after the pause of the one before."""
    takes: Fading = Fading()
    """Nodes that it took back lately."""
    held: Fading = Fading()
    """Seconds for which attempts that have ended had its nodes."""
    preemptions: Fading = Fading()
    """Those of them that it ended."""
    waits: Fading = Fading()
    """Seconds that attempts waited for its nodes."""
    placings: Fading = Fading()
    """Nodes that it gave."""
    serving: int = 0
    """Attempts that have its nodes now."""
    serving_since: float = 0.0
    """Sum of the instants at which they got them."""

    def open_again(self) -> float:
        """Return when it is worth trying again (Unix seconds): 0 unless it is dry.

        While an attempt still waits in a pool that was found dry, that one is the try, and nobody else need make it;
        but not for ever, for it may wait for reasons of its own.
        """
        if self.dry is None:
            return 0.0
        return self.dry + (MAX_PAUSE if self.waiting else self.pause())

    def pause(self) -> float:
        """Return for how many seconds it is not tried again, now that it has been found dry so many times."""
        return min(MAX_PAUSE, FIRST_PAUSE * exp2(min(max(0, self.tries - 1), 16)))

    def is_dry(self, now: float) -> bool:
        """Whether it has no capacity, as far as anybody knows: a pool that is due for a try is open again."""
        return now < self.open_again()

    def penalty(self, now: float) -> float:
        """Return by how much it has disappointed lately, fading from hour to hour: 0 where it never has.

        2 right after it took the only node that we had of it, less where it left us others; and up to 1 for having been
        found dry since it last gave a node, however due it is for another try: of two pools that cost the same, the one
        that nobody has found dry is tried first.
        """
        dry = 0.0
        if self.dry is not None:
            dry = (1.0 - exp2(-self.tries)) * exp2(-max(0.0, now - self.open_again()) / TAKEN_FADES)
        lately = self.takes.at(now, TAKEN_FADES)
        if self.taken is None or lately <= 0:
            return dry
        return dry + 2.0 * lately / (lately + self.live) * exp2(-max(0.0, now - self.taken) / TAKEN_FADES)

    def last_up(self) -> float:
        """Return when it last was known to have a node for us, 0 where nobody knows."""
        return max(self.placed or 0.0, self.taken or 0.0)

    def exposed(self, now: float) -> float:
        """Return the seconds for which attempts had its nodes, those that still have them included."""
        return self.held.at(now, RATES_FADE) + max(0.0, self.serving * now - self.serving_since)

    def preempted(self, now: float) -> float:
        """Return how many of those attempts it ended: exposure divided by it is a node's lifetime."""
        return max(0.0, self.preemptions.at(now, RATES_FADE))  # one may be taken back that was never counted

    def usual_wait(self, now: float) -> float | None:
        """Return the mean seconds that attempts waited for a node of it; None where none has got one."""
        placings = self.placings.at(now, RATES_FADE)
        return self.waits.at(now, RATES_FADE) / placings if placings > 0.01 else None


Fleet = Mapping[str, PoolKnown]
"""By the pool's name. A pool that nobody has tried is not in it."""


class News(StrEnum):
    """What an attempt tells of its pool."""

    DRY = "dry"
    PLACED = "placed"
    ENDED = "ended"
    TAKEN = "taken"


@dataclass(frozen=True, slots=True)
class Fact:
    """One piece of news, at its instant."""

    when: float
    pool: str
    news: News
    amount: float = 0.0
    """PLACED: seconds of waiting; ENDED: seconds on the node; TAKEN: 1, or -1 where that was a mistake."""
    since: float = 0.0
    """ENDED: when it got its node, if that was told; DRY: since when it had waited for one."""
    why: str = ""


def learn(fleet: Fleet, news: Iterable[Fact]) -> Fleet:
    """Return *fleet* with the facts in it, in the order in which they came to be."""
    known: dict[str, PoolKnown] | None = None
    for fact in sorted(news, key=attrgetter("when")):
        known = dict(fleet) if known is None else known
        known[fact.pool] = _learned(known.get(fact.pool, PoolKnown()), fact)
    return fleet if known is None else known


def forget(fleet: Fleet, pool: str) -> Fleet:
    """Return *fleet* without the drought of a pool that has been edited or made anew: it may be another now."""
    if pool not in fleet:
        return fleet
    return {**fleet, pool: replace(fleet[pool], dry=None, dry_since=0.0, why="", tries=0, taken=None, takes=Fading())}


def _learned(known: PoolKnown, fact: Fact) -> PoolKnown:
    when, amount = fact.when, fact.amount
    match fact.news:
        case News.DRY:
            # A pool that gave others nodes meanwhile has some: whoever got none may be one that no node of it fits.
            since = fact.since or when
            if known.placed is not None and known.placed >= since:
                return known
            again = known.dry is None or when >= known.dry + known.pause()
            latest = max((since, when), (known.dry_since, known.dry or 0.0))
            tries, why = known.tries + again, fact.why or known.why
            return replace(known, dry=latest[1], dry_since=latest[0], tries=tries, why=why)
        case News.PLACED:
            known = replace(
                known,
                placed=max(when, known.placed or 0.0),
                waits=known.waits.plus(amount, when, RATES_FADE),
                placings=known.placings.plus(1.0, when, RATES_FADE),
                serving=known.serving + 1,
                serving_since=known.serving_since + when,
            )
            if known.dry is not None and when >= known.dry_since:
                known = replace(known, dry=None, dry_since=0.0, why="", tries=0)
            return known
        case News.ENDED:
            return replace(
                known,
                held=known.held.plus(amount, when, RATES_FADE),
                serving=max(0, known.serving - 1),
                serving_since=max(0.0, known.serving_since - fact.since) if known.serving > 1 else 0.0,
            )
        case News.TAKEN:
            return replace(
                known,
                taken=max(when, known.taken or 0.0),
                takes=known.takes.plus(amount, when, TAKEN_FADES),
                preemptions=known.preemptions.plus(amount, when, RATES_FADE),
            )
