"""``make bench-deadline``: what deadlines cost, by Uniform Progress, ours and perfect foresight. Prints Markdown.

TRACES=FILE replays that file (docs/simulate.md has its format), else the generator's with a fixed seed. Jobs start in
the weeks that nothing was tuned on (split.py). JOBS=N sets how many per zone and setting; BOUND=1 adds what a policy
could pay at best that knows only for how long spot has been there or away (bound.py), where restarts are whole ticks.
TABLES=paper plays only that table: the settings of "Can't Be Late", jobs of 48 h.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from lorafinetune.engine.availability import Seen
from lorafinetune.engine.deadline import Choice, Prices, choose
from lorafinetune.simulate.baselines import greedy, reserve, uniform_progress
from lorafinetune.simulate.foresight import cheapest
from lorafinetune.simulate.generator import generate
from lorafinetune.simulate.job import Job, Policy, ours, play
from lorafinetune.simulate.traces import Trace, Traces, read
from tests.bench.deadline.bound import Bound
from tests.bench.deadline.split import TUNING_DAYS, known

SEED = 20_230_215
WORK = 16 * 3600
STRETCHES = (1.1, 1.3, 1.6, 2.0)
RESTARTS = (65, 195, 390, 780, 1170)
"""Seconds: with ticks of 195 s these have common parts, so foresight is exact and quick."""
SHORT = 390
"""Up to two ticks: restarts for which a row of its own says what is closed in all."""
TICK = 195
TICKS = (60, 300, 600, 900, 3600)
RATIOS = (0.2, 0.35, 0.5, 0.7)
"""Of the price of spot to that of on-demand."""
RATIO = 0.3
PAPER_WORK, PAPER_TICK = 48, 600
PAPER_DEADLINES = (52, 70, 92)
PAPER_OVERHEADS = (72, 720, 1440)
"""Of "Can't Be Late": hours of work, seconds of a tick, hours to the deadline, seconds of a restart."""
PATIENCE = 600.0
TRIES_AFTER = 3600.0
ON_DEMAND = 3.06


@dataclass(frozen=True, slots=True)
class Setting:
    """A column of jobs: in all zones alike."""

    table: str
    word: str
    restart: int
    stretch: float
    tick: int = TICK
    ratio: float = RATIO
    work: int = WORK

    @property
    def job(self) -> Job:
        """Return its job: whole ticks of work and of time."""
        work = self.work // self.tick * self.tick
        prices = Prices(self.ratio * ON_DEMAND, ON_DEMAND)
        deadline = int(work * self.stretch / self.tick + 1e-6) * self.tick
        return Job(work, deadline, self.restart, self.tick, prices, patience=PATIENCE)


def settings() -> Iterator[Setting]:
    """Yield all settings."""
    for restart in PAPER_OVERHEADS:
        for hours in PAPER_DEADLINES:
            word = f"{restart / 3600:g} h, within {hours} h"
            yield Setting("paper", word, restart, hours / PAPER_WORK, PAPER_TICK, work=PAPER_WORK * 3600)
    for restart in RESTARTS:
        for stretch in STRETCHES:
            yield Setting("main", f"{restart / 60:.1f} min", restart, stretch)
    for ratio in RATIOS:
        for stretch in (1.3, 1.6):
            yield Setting("price of spot", f"{ratio:g}", 390, stretch, ratio=ratio)
    for tick in TICKS:
        for stretch in (1.3, 1.6):
            yield Setting("tick, restarts of 10 min", f"{tick / 60:g} min", 600, stretch, tick)


def policies(job: Job) -> dict[str, tuple[Policy, bool]]:
    """Return all that are played, by column; and whether they see spot at each tick."""
    return {
        "UP": (uniform_progress(job), True),
        "rule": (reserve(job), True),
        "ours": (ours(job), True),
        "greedy": (greedy(job), True),
        "UP, tries": (uniform_progress(job, TRIES_AFTER), False),
        "UP, never tries": (uniform_progress(job), False),
        "ours, tries": (ours(job, visible=False), False),
    }


@dataclass(slots=True)
class Sum:
    """Costs of the jobs of one row, in parts of on-demand without restarts."""

    costs: dict[str, list[float]] = field(default_factory=dict)
    foresight: list[float] = field(default_factory=list)
    missed: int = 0

    def add(self, played: dict[str, float], best: float, missed: int) -> None:
        """Add a job."""
        for name, cost in played.items():
            self.costs.setdefault(name, []).append(cost)
        self.foresight.append(best)
        self.missed += missed

    def closed(self, theirs: str, mine: str) -> str:
        """Return which part of the gap between *theirs* and foresight *mine* closes: of sums over all jobs."""
        if mine not in self.costs:
            return "-"
        gap = sum(self.costs[theirs]) - sum(self.foresight)
        saved = sum(self.costs[theirs]) - sum(self.costs[mine])
        return f"{100 * saved / gap:.0f} %" if gap > 0.005 * len(self.foresight) else "-"

    def middle(self, theirs: str, mine: str) -> str:
        """Return the median over jobs that have a gap."""
        rows = zip(self.costs[theirs], self.costs[mine], self.foresight, strict=True)
        parts = [(up - cost) / (up - best) for up, cost, best in rows if up - best > 0.005]
        return f"{100 * median(parts):.0f} %" if parts else "-"

    def row(self, *words: str) -> str:
        """Return the row in Markdown."""
        figures = [f"{sum(self.costs[name]) / len(self.foresight):.3f}" for name in ("UP", "rule", "ours", "greedy")]
        figures += [f"{sum(self.foresight) / len(self.foresight):.3f}", self.closed("UP", "rule")]
        figures += [f"**{self.closed('UP', 'ours')}**", self.middle("UP", "ours"), self.closed("UP", "bound")]
        for name in ("UP, never tries", "UP, tries", "ours, tries"):
            figures.append(f"{sum(self.costs[name]) / len(self.foresight):.3f}")
        figures += [self.closed("UP, tries", "ours, tries"), str(self.missed)]
        return f"| {' | '.join([*words, *figures])} |"


HEAD = (
    "restart | UP | rule | ours | greedy | foresight | closed by rule | closed by ours | median | bound"
    " | UP never tries | UP tries | ours tries | closed, trying | missed"
)


def main() -> int:
    """Play all jobs, print the tables; status 1 if a feasible deadline was missed."""
    path = os.environ.get("TRACES")
    traces = read(Path(path)) if path else generate(SEED)
    jobs = int(os.environ.get("JOBS") or 4)
    begun = time.perf_counter()
    sums: dict[tuple[str, str, str], Sum] = {}
    for zone, trace in traces.zones.items():
        bounds: dict[int, Bound] = {}
        for setting in settings():
            if os.environ.get("TABLES", setting.table) != setting.table:
                continue
            for played, best, missed in replayed(trace, setting, jobs, bounds, aside(traces, path)):
                for key in rows_of(zone, setting):
                    sums.setdefault(key, Sum()).add(played, best, missed)
    print(f"Traces: {traces.source or 'a file'}; {platform.python_version()}; {time.perf_counter() - begun:.0f} s")
    for table in dict.fromkeys(key[0] for key in sums):
        print(f"\n| {table} | {HEAD} |\n|---|" + "---:|" * 15)
        for (of, row, word), total in sums.items():
            if of == table:
                print(total.row(row, word))
    speed()
    return 1 if any(total.missed for total in sums.values()) else 0


def rows_of(zone: str, setting: Setting) -> Iterator[tuple[str, str, str]]:
    """Yield table, row and word of all sums that a job counts in."""
    whose = "zones tuned on" if known(zone) else "zones not tuned on"
    named = f"{zone}, tuned on" if known(zone) else zone
    if setting.table == "main":
        yield "all", whose, setting.word
        if setting.restart <= SHORT:
            yield "all", whose, f"{RESTARTS[0] / 60:.1f} to {SHORT / 60:.1f} min"
        yield "deadline", f"{setting.stretch:g}x", setting.word
        yield "zone", named, setting.word
    elif setting.table == "paper":
        yield "paper", whose, "all nine"
        yield "paper", whose, f"{setting.restart / 3600:g} h"
        yield "paper", whose, setting.word
        yield "paper, zone", named, "all nine"
        yield "paper, zone", named, f"{setting.restart / 3600:g} h"
    else:
        yield setting.table, whose, setting.word


def aside(traces: Traces, path: str | None) -> int:
    """Return at which gap the jobs begin: after what was tuned on."""
    tuned = path and any(known(one) for one in traces.zones)
    return int(TUNING_DAYS * 86_400 / traces.gap_seconds) if tuned else 0


def replayed(
    trace: Trace, setting: Setting, jobs: int, bounds: dict[int, Bound], first: int
) -> Iterator[tuple[dict[str, float], float, int]]:
    """Yield for each job what all paid, what foresight pays, and how many of ours were late."""
    there, job = trace.samples(), setting.job
    per_gap = setting.tick / trace.gap_seconds
    ticks, whole = round(job.deadline / job.tick), job.work / 3600 * ON_DEMAND
    last = len(there) - int((ticks + 1) * per_gap) - 1
    for index in range(jobs):
        start = first + (last - first) * (2 * index + 1) // (2 * jobs)
        window = [there[start + int(tick * per_gap)] for tick in range(ticks)]
        best = cheapest(
            window,
            tick=setting.tick,
            work=int(job.work),
            deadline=int(job.deadline),
            restart_cost=setting.restart,
            spot_price=job.prices.spot,
            on_demand_price=job.prices.on_demand,
        )
        assert best is not None, "all deadlines here are feasible"
        playing = policies(job)
        if os.environ.get("BOUND") and setting.table == "main" and setting.restart % TICK == 0:
            watched = [there[first + int(tick * per_gap)] for tick in range(int((len(there) - first) / per_gap))]
            if setting.restart not in bounds:
                bounds[setting.restart] = Bound(watched, job, max(STRETCHES) * WORK)
            playing["bound"] = bounds[setting.restart].policy(job), True
        played = {name: play(job, window, policy, visible=sees) for name, (policy, sees) in playing.items()}
        missed = sum(not played[name].met for name in ("ours", "ours, tries"))
        yield {name: outcome.cost / whole for name, outcome in played.items()}, best / whole, missed


def speed() -> None:
    """Print how long a decision takes."""
    seen = Seen().then(True, TICK).then(False, TICK)
    begun = time.perf_counter()
    for _ in range(10_000):
        choose(0.0, WORK, WORK * 1.5, seen, 390.0, Prices(1.0, ON_DEMAND), running=Choice.WAIT)
    print(f"\nA decision: {1e6 * (time.perf_counter() - begun) / 10_000:.1f} us")


if __name__ == "__main__":
    sys.exit(main())
