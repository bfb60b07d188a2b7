"""What the runs' statuses tell of the pools: from one run's change of status to news for the fleet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine.ending import PREEMPTIONS, QUEUE_EVICTED
from lorafinetune.engine.fleet import Fact, Fleet, News, learn
from lorafinetune.engine.pending import words_of
from lorafinetune.engine.times import instant

AHEAD: Final = 3600.0
"""Seconds by which a clock may be ahead. What is said of later was forged: no pool is dry for years for all runs."""


def fold(fleet: Fleet, before: LoRAFineTuneStatus | None, after: LoRAFineTuneStatus | None, now: float) -> Fleet:
    """Return *fleet* with what one run's change of status tells; None = the run is not there, or is gone."""
    return learn(fleet, facts(before, after, now))


def recall(statuses: Iterable[LoRAFineTuneStatus], now: float) -> Fleet:
    """Return what the statuses of all runs tell together: the same as folding them one after the other."""
    return learn({}, [fact for one in statuses for fact in facts(None, one, now)])


def facts(before: LoRAFineTuneStatus | None, after: LoRAFineTuneStatus | None, now: float) -> list[Fact]:
    """Return what changed from *before* to *after*, as news of pools."""
    old = {one.number: one for one in before.attempts} if before is not None else {}
    new = {one.number: one for one in after.attempts} if after is not None else {}
    found: list[Fact] = []
    for number, one in new.items():
        if one is not (was := old.get(number)):
            found += _told(was, one)
    for number, one in old.items():
        if number not in new and one.ended is None and (got := node_since(one)) is not None:
            found.append(Fact(now, one.pool, News.ENDED, max(0.0, now - got), got))
    return [one for one in found if one.when <= now + AHEAD]


def node_since(attempt: AttemptStatus) -> float | None:
    """Return when the attempt got its node; None if it never had one."""
    since = attempt.scheduled or attempt.started
    return instant(since) if since is not None else None


def _told(was: AttemptStatus | None, one: AttemptStatus) -> list[Fact]:
    found: list[Fact] = []
    asked = one.queued_until or one.created
    since = instant(asked) if asked is not None else 0.0
    if one.dry is not None and (was is None or was.dry != one.dry):
        found.append(Fact(instant(one.dry), one.pool, News.DRY, since=since, why=words_of(one.message, one.pool)))
    got, had = node_since(one), node_since(was) if was is not None else None
    if got is not None and had is None:
        found.append(Fact(got, one.pool, News.PLACED, max(0.0, got - since) if since else 0.0))
    if one.ended is not None and got is not None:
        ended = instant(one.ended)
        if was is None or was.ended is None:
            # From where the sum of the living has it: what was told first, not what is known by now.
            found.append(Fact(ended, one.pool, News.ENDED, max(0.0, ended - got), had if had is not None else got))
        taken = _is_taken(one) - (was is not None and _is_taken(was))
        if taken:
            found.append(Fact(ended, one.pool, News.TAKEN, float(taken)))
    return found


def _is_taken(attempt: AttemptStatus) -> bool:
    """Whether its pool took the node back: a place in a queue is no node."""
    return attempt.cause in PREEMPTIONS and attempt.reason != QUEUE_EVICTED
