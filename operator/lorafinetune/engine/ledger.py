"""What a run cost: seconds of its attempts times the prices that stood when each was made."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus, Totals
from lorafinetune.engine.times import instant

_HOUR = Decimal(3600)
_SHOWN = Decimal("0.0005")
_CENT_OF_A_CENT = Decimal("0.000001")


class Bill(NamedTuple):
    """Cost so far, and what the same seconds cost on demand (None where no such price was known)."""

    cost: Decimal
    on_demand: Decimal | None

    @property
    def cost_text(self) -> str:
        """The COST column."""
        return f"${self.cost:.3f}"

    @property
    def saved_text(self) -> str | None:
        """The SAVED column: percent of the on-demand price that was not paid."""
        if not self.on_demand:
            return None
        return f"{max(0, round(100 * (1 - self.cost / self.on_demand)))}%"


def attempt_seconds(attempt: AttemptStatus, now: float) -> float:
    """Return the seconds that *attempt* has held its node: from its container's start to its end, or to now."""
    if attempt.started is None:
        return 0.0
    end = instant(attempt.ended) if attempt.ended is not None else now
    return max(0.0, end - instant(attempt.started))


def _charge(attempt: AttemptStatus, price: str | None, now: float) -> Decimal:
    return Decimal(price or 0) * Decimal(str(attempt_seconds(attempt, now))) / _HOUR


def bill(status: LoRAFineTuneStatus, now: float) -> Bill:
    """Add up the attempts in the list and the totals of those before them."""
    totals = status.totals or Totals()
    cost, on_demand, known = Decimal(totals.cost), Decimal(totals.on_demand_cost), True
    for attempt in status.attempts:
        cost += _charge(attempt, attempt.price_per_hour, now)
        on_demand += _charge(attempt, attempt.on_demand_price_per_hour, now)
        known = known and (attempt.on_demand_price_per_hour is not None or attempt.started is None)
    return Bill(cost, on_demand if known and on_demand else None)


def generating_cost(status: LoRAFineTuneStatus, now: float) -> str | None:
    """Return what making class images has cost, as the COST column says it; None while that is nothing."""
    cost = Decimal((status.totals or Totals()).generating_cost)
    cost += sum((_generating(attempt, now) for attempt in status.attempts), Decimal(0))
    return f"${cost:.3f}" if cost >= _SHOWN else None


def _generating(attempt: AttemptStatus, now: float) -> Decimal:
    if attempt.generating_since is None:
        return Decimal(0)
    until = instant(attempt.generating_until) if attempt.generating_until is not None else now
    seconds = Decimal(str(max(0.0, until - instant(attempt.generating_since))))
    return Decimal(attempt.price_per_hour or 0) * seconds / _HOUR


def fold_oldest(status: LoRAFineTuneStatus, keep: int) -> LoRAFineTuneStatus:
    """Return *status* with all but the newest *keep* attempts folded into its totals. Those have all ended."""
    surplus = status.attempts[: max(0, len(status.attempts) - keep)]
    if not surplus:
        return status
    totals = status.totals or Totals()
    cost = Decimal(totals.cost) + sum((_charge(one, one.price_per_hour, 0.0) for one in surplus), Decimal(0))
    on_demand = Decimal(totals.on_demand_cost)
    on_demand += sum((_charge(one, one.on_demand_price_per_hour, 0.0) for one in surplus), Decimal(0))
    generating = Decimal(totals.generating_cost) + sum((_generating(one, 0.0) for one in surplus), Decimal(0))
    folded = Totals(
        attempts=totals.attempts + len(surplus),
        cost=str(cost.quantize(_CENT_OF_A_CENT)),
        on_demand_cost=str(on_demand.quantize(_CENT_OF_A_CENT)),
        generating_cost=str(generating.quantize(_CENT_OF_A_CENT)),
    )
    return status.model_copy(update={"attempts": status.attempts[len(surplus) :], "totals": folded})
