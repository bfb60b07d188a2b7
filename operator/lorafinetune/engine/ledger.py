"""What a run cost: seconds of its attempts times the prices that stood when each was made; and what came to nothing.

All of it is added up anew in each pass, from the attempts in the list and the totals of those before them, so that a
correction of an attempt corrects every sum that it is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus, LostStatus, Totals
from lorafinetune.engine import streaks
from lorafinetune.engine.ending import PREEMPTIONS, Cause
from lorafinetune.engine.observation import CURRENCY
from lorafinetune.engine.times import instant

_HOUR = Decimal(3600)
_SHOWN = Decimal("0.0005")
_CENT_OF_A_CENT = Decimal("0.000001")


class Bill(NamedTuple):
    """Cost so far, and what is known of what it would have been on demand."""

    cost: Decimal
    on_demand: Decimal | None
    """What the attempts cost on demand that have such a price; None where none has."""
    compared: Decimal = Decimal(0)
    """What those attempts have cost: like is compared with like."""

    @property
    def saved_text(self) -> str | None:
        """The SAVED column: percent of the on-demand price that was not paid."""
        if not self.on_demand:
            return None
        return f"{max(0, round(100 * (1 - self.compared / self.on_demand)))}%"

    def said(self, currency: str) -> dict[str, str | None]:
        """Return the status' members: the columns COST and SAVED, and what it would have cost on demand."""
        return {
            "cost": money(self.cost, currency),
            "on_demand_cost": money(self.on_demand, currency) if self.on_demand is not None else None,
            "saved": self.saved_text,
        }


def money(amount: Decimal, currency: str = CURRENCY) -> str:
    """Return *amount* as people read it."""
    return f"{currency}{amount:.3f}"


def attempt_seconds(attempt: AttemptStatus, now: float) -> float:
    """Return the seconds for which *attempt* has held its GPU: from when it got its node to its end, or to now.

    Image pulls are in it, for the node is paid meanwhile. Where the node's clock is behind the scheduler's, its own
    start counts.
    """
    held = [instant(time) for time in (attempt.scheduled, attempt.started) if time is not None]
    end = instant(attempt.ended) if attempt.ended is not None else now
    return max(0.0, end - min(held)) if held else 0.0


@lru_cache(maxsize=65_536)  # attempts that have ended are added up in each pass
def _price(price: str | None, seconds: float) -> Decimal:
    return Decimal(price or 0) * Decimal(str(seconds)) / _HOUR


def _charge(attempt: AttemptStatus, price: str | None, now: float) -> Decimal:
    return _price(price, attempt_seconds(attempt, now))


def bill(status: LoRAFineTuneStatus, now: float) -> Bill:
    """Add up the attempts in the list and the totals of those before them."""
    totals = status.totals or Totals()
    cost, on_demand, compared = Decimal(totals.cost), Decimal(totals.on_demand_cost), _compared(totals)
    for attempt in status.attempts:
        charge = _charge(attempt, attempt.price_per_hour, now)
        cost += charge
        if attempt.on_demand_price_per_hour is not None:
            on_demand += _charge(attempt, attempt.on_demand_price_per_hour, now)
            compared += charge
    return Bill(cost, on_demand or None, compared)


def _compared(totals: Totals) -> Decimal:
    """Return what of the totals' cost has an on-demand price beside it: all, where an older version added them up."""
    return Decimal(totals.cost if totals.compared_cost is None else totals.compared_cost)


def price_now(status: LoRAFineTuneStatus) -> Decimal:
    """Return what the run pays for one hour at this moment."""
    running = (one for one in status.attempts if one.ended is None and streaks.held_a_node(one))
    return sum((Decimal(one.price_per_hour or 0) for one in running), Decimal(0))


def accounted(attempt: AttemptStatus, pace: float | None) -> AttemptStatus:
    """Return an attempt that has ended with what it cost, and how many of its seconds came to nothing.

    *pace* is the seconds of one of its steps, with all that is done beside it, where that was seen. What it did after
    its newest checkpoint is lost, down to a silence before its end; one that committed none is lost whole, for what it
    prepared is prepared again. Its own start-up is not in this, unless it is lost whole (see :func:`start_again`).
    """
    held = attempt_seconds(attempt, 0.0)
    if attempt.cause == Cause.FINISHED:
        lost = 0.0
    elif streaks.progressed(attempt):
        trained = max(0.0, held - (attempt.start_seconds or 0))
        begun, durable = attempt.from_step or 0, attempt.durable_step or 0
        done = max(attempt.to_step or 0, durable) - begun
        kept = max(0.0, (durable - begun) * (pace if pace is not None else trained / done))  # clocks may go back
        lost = max(0.0, trained - kept)
    else:
        lost = held
    cost = _price(attempt.price_per_hour, held).quantize(_CENT_OF_A_CENT)
    return attempt.model_copy(update={"cost": f"{cost.normalize():f}", "lost_seconds": round(lost)})


def start_again(attempt: AttemptStatus) -> int:
    """Return the seconds of start-up that *attempt* took because another one had ended, and that counts by itself.

    Not that of the first one to commit anything: a run has to start once.
    """
    counts = streaks.progressed(attempt) or attempt.cause == Cause.FINISHED
    return (attempt.start_seconds or 0) if counts and attempt.from_step else 0


def lost(status: LoRAFineTuneStatus) -> list[LostStatus]:
    """Add up what each kind of ending has taken, over all attempts; those that published are left out.

    Each second that was paid is in here, or was of use: the first start-up, the steps that count, publishing.
    """
    totals = status.totals or Totals()
    return _lost(status.attempts, totals.lost, totals.ended_by)


def _lost(attempts: Iterable[AttemptStatus], before: Iterable[LostStatus], ended_by: str | None) -> list[LostStatus]:
    known = {one.cause: (one.attempts, one.seconds, Decimal(one.cost)) for one in before}

    def book(cause: str, attempt: AttemptStatus, seconds: int, endings: int) -> None:
        count, total, cost = known.get(cause, (0, 0, Decimal(0)))
        cost = (cost + _price(attempt.price_per_hour, seconds)).quantize(_CENT_OF_A_CENT)
        known[cause] = (count + endings, total + seconds, cost)

    for attempt in attempts:
        if ended_by is not None and ended_by != Cause.FINISHED and (again := start_again(attempt)):
            book(ended_by, attempt, again, 0)
        if attempt.cause is not None and attempt.cause != Cause.FINISHED:
            book(attempt.cause, attempt, attempt.lost_seconds or 0, 1)
        if streaks.held_a_node(attempt):
            ended_by = attempt.cause
    return [
        LostStatus(cause=cause, attempts=count, seconds=seconds, cost=f"{cost.normalize():f}")
        for cause, (count, seconds, cost) in known.items()
    ]


def counted(status: LoRAFineTuneStatus) -> dict[str, object]:
    """Return the status' members that say how often the run was taken away, how often it failed, and what it took."""
    taken = lost(status)
    return {
        "lost": taken,
        "preemptions": sum(one.attempts for one in taken if one.cause in PREEMPTIONS),
        "failures": sum(one.attempts for one in taken if one.cause == Cause.ERROR),
    }


def endings(status: LoRAFineTuneStatus, cause: Cause) -> int:
    """Return how many attempts have ended for *cause*, over the whole run."""
    return sum(one.attempts for one in lost(status) if one.cause == cause)


def generating_cost(status: LoRAFineTuneStatus, now: float, currency: str = CURRENCY) -> str | None:
    """Return what making class images has cost, as the COST column says it; None while that is nothing."""
    cost = Decimal((status.totals or Totals()).generating_cost)
    cost += sum((_generating(attempt, now) for attempt in status.attempts), Decimal(0))
    return money(cost, currency) if cost >= _SHOWN else None


def _generating(attempt: AttemptStatus, now: float) -> Decimal:
    if attempt.generating_since is None:
        return Decimal(0)
    until = instant(attempt.generating_until) if attempt.generating_until is not None else now
    return _price(attempt.price_per_hour, max(0.0, until - instant(attempt.generating_since)))


def fold_oldest(status: LoRAFineTuneStatus, keep: int) -> LoRAFineTuneStatus:
    """Return *status* with all but the newest *keep* attempts folded into its totals. Those have all ended."""
    surplus = status.attempts[: max(0, len(status.attempts) - keep)]
    if not surplus:
        return status
    totals = status.totals or Totals()
    cost = Decimal(totals.cost) + sum((_charge(one, one.price_per_hour, 0.0) for one in surplus), Decimal(0))
    on_demand = Decimal(totals.on_demand_cost)
    priced = [one for one in surplus if one.on_demand_price_per_hour is not None]
    on_demand += sum((_charge(one, one.on_demand_price_per_hour, 0.0) for one in priced), Decimal(0))
    compared = _compared(totals) + sum((_charge(one, one.price_per_hour, 0.0) for one in priced), Decimal(0))
    generating = Decimal(totals.generating_cost) + sum((_generating(one, 0.0) for one in surplus), Decimal(0))
    streak = streaks.after(surplus, streaks.Streaks(totals.infrastructure, totals.without_progress))
    folded = Totals(
        attempts=totals.attempts + len(surplus),
        cost=str(cost.quantize(_CENT_OF_A_CENT)),
        on_demand_cost=str(on_demand.quantize(_CENT_OF_A_CENT)),
        compared_cost=str(compared.quantize(_CENT_OF_A_CENT)),
        generating_cost=str(generating.quantize(_CENT_OF_A_CENT)),
        lost=_lost(surplus, totals.lost, totals.ended_by),
        infrastructure=streak.infrastructure,
        without_progress=streak.without_progress,
        ended_by=next((one.cause for one in reversed(surplus) if streaks.held_a_node(one)), totals.ended_by),
    )
    return status.model_copy(update={"attempts": status.attempts[len(surplus) :], "totals": folded})


def folded(status: LoRAFineTuneStatus) -> int:
    """Return the highest attempt number that only the totals remember."""
    return status.totals.attempts if status.totals else 0
