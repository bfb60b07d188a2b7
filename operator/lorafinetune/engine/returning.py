"""From on-demand back to cheaper capacity: at a checkpoint, if what it is likely to save exceeds what it may cost.

Whether there is a node is known by going there only. One that is not there costs the wait for it and a restart, and
makes the next try rarer: for this run, and by what all runs know of the pool for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from typing import Final

from lorafinetune.api.durations import seconds
from lorafinetune.api.gpupool import CapacityType
from lorafinetune.api.status import AttemptStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine import pools, streaks
from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.availability import ENDS_DOWN, ENDS_UP, age_class
from lorafinetune.engine.decision import Decision
from lorafinetune.engine.ending import Cause
from lorafinetune.engine.fallback import RETURNING
from lorafinetune.engine.fleet import PoolKnown
from lorafinetune.engine.stopping import stop
from lorafinetune.engine.times import duration, instant, stamp
from lorafinetune.engine.urgency import start_up, urgency

EVERY: Final = 3600.0
"""Seconds between two moves back to spot."""
IN_VAIN: Final = 7200.0
"""The same after one that found no node, without news of another run's. Longer pauses cost more than they spare: in the
simulated lives of 100 runs on two bad zones each doubling makes them dearer by 1 to 4 %, and done a little sooner."""
FRESH: Final = 900.0
"""Seconds for which another run's placement says that a pool has nodes."""
FORGIVEN: Final = 1800.0
"""Seconds after which a pool that took a node, or had none, may be moved to although nobody was placed there since."""
JUST_SAVED: Final = 30.0
"""Seconds of work since the newest checkpoint up to which an attempt counts as being at it."""
SURE: Final = 0.8
"""How often a pool with fresh good news gives a node within its time: of the traces' zones that had capacity, 89 % have
it an hour later, and some of the rest is somebody else's."""
UNSURE: Final = 0.5
"""How often one does of which nothing bad was ever heard: zones of the traces have capacity about half of the time."""


def back(now: Settled, last: AttemptStatus) -> Decision | None:
    """Spot capacity may be had again: go there at a checkpoint, if that is likely to pay."""
    seen, progress = now.seen, now.seen.progress
    if not seen.spec.placement.return_to_spot or progress is None or progress.attempt != last.number:
        return None
    moved = instant(now.status.moved) if now.status.moved is not None else None
    if moved is not None and seen.now - moved < EVERY:
        return None
    pace, steps, saved = progress.seconds_per_step, seen.steps, progress.checkpoint
    if progress.phase is not Phase.TRAINING or pace is None or steps is None or saved is None:
        return None
    if (progress.step - saved.step) * pace > JUST_SAVED:
        return None
    ended = last.model_copy(update={"cause": Cause.MOVED.value, "reason": RETURNING, "ended": stamp(seen.now)})
    choice = pools.choose(seen, now.status.model_copy(update={"attempts": [*now.status.attempts[:-1], ended]}))
    if not isinstance(choice, pools.Placed) or choice.dry or choice.spec.capacity_type is not CapacityType.SPOT:
        return None
    wait, restart = seconds(choice.spec.provisioning_timeout), start_up(now.status.attempts)
    stands = urgency(seen, now.status)
    if stands is not None and stands.slack < wait + 2.0 * stands.start_up:
        return None  # if there was no node, the way back would be too long
    in_vain = moved is not None and was_in_vain(now.status.attempts) and seen.now - moved < IN_VAIN
    if in_vain and not is_heard_of(choice.known, seen.now):
        return None
    rest = (steps - progress.step) * pace
    dear, cheap = float(last.price_per_hour or 0), float(choice.spec.price_per_hour)
    again = restart + (progress.step - saved.step) * pace
    saving = saves(rest, dear=dear, cheap=cheap, known=choice.known, restart=restart, now=seen.now)
    saving -= again * cheap / 3600.0
    cost = (again * dear + wait * (dear - cheap)) / 3600.0
    chance = likely(choice.known, seen.now)
    if chance * saving <= (1.0 - chance) * cost:
        return None
    message = (
        f"moving from {last.pool} to {choice.name} at step {saved.step}: saves about {seen.currency}{saving:.2f} over "
        f"the {duration(rest)} that are left, for {duration(restart)} of starting again"
    )
    status = now.status.model_copy(update={"moved": stamp(seen.now)})
    return stop(replace(now, status=status), Cause.MOVED, RETURNING, message)


def likely(known: PoolKnown, now: float) -> float:
    """Return the chance, 0 to 1, that a pool of which that is *known* gives a node within its time."""
    if is_heard_of(known, now):
        return SURE
    bad = max(known.taken or 0.0, known.dry or 0.0)
    if bad == 0.0:
        return UNSURE
    gone = now - bad
    if gone < FORGIVEN:
        return 0.0
    had = known.last_up()
    begins = ENDS_DOWN[age_class(now - had if had else gone)]
    ends = ENDS_UP[age_class(gone)]
    return begins / (begins + ends) * (1.0 - exp(-(begins + ends) * gone / 3600.0))


def is_heard_of(known: PoolKnown, now: float) -> bool:
    """Whether somebody got a node of it lately, and nothing bad was heard since."""
    good = known.placed or 0.0
    return good > 0.0 and now - good < FRESH and good >= max(known.taken or 0.0, known.dry or 0.0)


def was_in_vain(attempts: Sequence[AttemptStatus]) -> bool:
    """Whether the run has gone back to spot since it last had a node there."""
    for one in reversed(attempts):
        if one.cause == Cause.MOVED and one.reason == RETURNING:
            return True
        if one.capacity_type != CapacityType.ON_DEMAND and streaks.held_a_node(one):
            break
    return False


def saves(rest: float, *, dear: float, cheap: float, known: PoolKnown, restart: float, now: float) -> float:
    """Return what the *rest* (seconds of work) costs less on the cheap pool, with what its preemptions take."""
    taken = known.preempted(now)
    lifetime = known.exposed(now) / taken if taken > 0.1 else float("inf")
    if lifetime <= restart:
        return 0.0  # nodes that go before they are of use
    needed = rest if lifetime == float("inf") else rest * lifetime / (lifetime - restart)
    return (rest * dear - needed * cheap) / 3600.0
