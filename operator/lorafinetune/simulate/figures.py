"""What a simulation found for one policy, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorafinetune.simulate.account import HOUR
from lorafinetune.simulate.life import Life


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over all runs under one policy. Times in seconds, money in the currency of the prices."""

    policy: str
    words: str
    runs: int
    finished: int
    failed: int
    """The engine ended them before their last step: a limit, or nothing left to try."""
    failed_by: dict[str, int]
    """The same by reason, as in the run's status."""
    published: int
    """Those of them that published the LoRA of the steps that were done."""
    late: int
    """Not finished when they were wanted; 0 where nobody said when."""
    cost: float
    """By the world's account."""
    ledger: float
    """The same by the engine's ledger, as people see it in the status."""
    on_demand_cost: float | None
    """What the steps that were done would have cost on demand, undisturbed; None where there is no such price."""
    finish_median: float | None
    """From apply to success, of those that finished."""
    finish_p90: float | None
    finish_times: tuple[float, ...]
    gpu_seconds: float
    on_demand_seconds: float
    starting: float
    lost: dict[str, float]
    """GPU-seconds of work that was done again, by what ended the attempt."""
    overhead: float
    """The part of the training, 0 to 1, that was work done again or a halt for a checkpoint."""
    attempts: dict[str, int]
    """By what ended them."""
    preemptions: int
    waits: dict[str, float]
    """Seconds by activity, as in status.times: the mean of a run."""
    looks: int
    """Passes of the operator."""

    @property
    def saved(self) -> float | None:
        """The part of the on-demand cost that was not paid; negative where more was."""
        return 1.0 - self.cost / self.on_demand_cost if self.on_demand_cost else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        return asdict(self) | {"finish_times": list(self.finish_times), "saved": self.saved}


def figures(lives: Sequence[Life], *, policy: str, words: str, price: float | None) -> Figures:
    """Add up what became of *lives*; *price* is that of an hour on demand."""
    accounts = [life.account for life in lives]
    times = sorted(life.ended - life.about.created for life in lives if life.succeeded and life.ended is not None)
    failed = [life for life in lives if life.status.phase == "Failed"]
    waits: Counter[str] = Counter()
    for life in lives:
        for one in life.status.times:
            waits[one.activity] += one.seconds
    return Figures(
        policy=policy,
        words=words,
        runs=len(lives),
        finished=len(times),
        failed=len(failed),
        failed_by=dict(Counter(life.reason for life in failed).most_common()),
        published=sum(life.status.artifact is not None for life in failed),
        late=sum(life.is_late for life in lives),
        cost=sum(account.cost for account in accounts),
        ledger=float(sum(life.billed for life in lives)),
        on_demand_cost=sum(_undisturbed(life) for life in lives) * price / HOUR if price is not None else None,
        finish_median=quantile(times, 0.5),
        finish_p90=quantile(times, 0.9),
        finish_times=tuple(times),
        gpu_seconds=sum(account.seconds for account in accounts),
        on_demand_seconds=sum(account.on_demand_seconds for account in accounts),
        starting=sum(account.starting for account in accounts),
        lost=_summed(account.lost_by for account in accounts),
        overhead=_share(
            sum(account.lost + account.saving for account in accounts),
            sum(account.lost + account.saving + account.training for account in accounts),
        ),
        attempts={cause: int(count) for cause, count in _summed(account.ended_by for account in accounts).items()},
        preemptions=sum(account.taken for account in accounts),
        waits={name: seconds / len(lives) for name, seconds in waits.most_common()},
        looks=sum(life.looks for life in lives),
    )


def quantile(ordered: Sequence[float], part: float) -> float | None:
    """Return the smallest of *ordered* that at least *part* of them do not exceed; None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, min(len(ordered) - 1, -int(-part * len(ordered) // 1) - 1))]


def _undisturbed(life: Life) -> float:
    """Return the seconds that the steps which were done take where nothing comes between."""
    effort = life.effort
    return effort.start_up + life.done * effort.step + effort.export if life.done else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _summed(parts: Iterable[dict[str, float] | Counter[str]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return dict(sorted(total.items()))
