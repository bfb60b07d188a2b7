"""The course of one bench: which measures, in which order, into which rows. Ours first, then the Job controller's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import psutil

from tests.bench.contenders import Contender
from tests.bench.measures import Bench, Owner
from tests.bench.samples import Samples
from tests.bench.scrape import Writes
from tests.bench.table import Row

ROUNDS = 5
"""How often what is done one at a time is repeated."""
MANY = 20
BACK_OFF = (10, 20, 40)
"""Seconds that the Job controller waits before the replacement after interruption 1, 2, 3 of one Job, by design."""


@dataclass(slots=True)
class Course:
    """Runs the measures and keeps the rows, those before a failure too."""

    bench: Bench
    run: Contender
    job: Contender
    look: Callable[[], Awaitable[Writes]]
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _writes: Samples = field(default=Samples((), 1), init=False)

    async def measure(self, operator: psutil.Process, manager: psutil.Process) -> None:
        """Go the whole course. Raises TimeoutError if something that is waited for does not come."""
        await self._first_life()
        run_singles, job_singles, runs, jobs = await self._applied()
        await self._interrupted(run_singles, job_singles, runs, jobs)
        self._footprint(operator, manager, len(run_singles) + len(runs))

    async def _first_life(self) -> None:
        self.say("the first of each kind")
        _, ours = await self.bench.applied(self.run, ["first"])
        _, theirs = await self.bench.applied(self.job, ["first"])
        self._row("applied to pod created, first one after the start", 1, ours, theirs)
        await self.bench.deleted(self.run, "first")
        await self.bench.deleted(self.job, "first")
        self.say("API writes of one life")
        writes = await self.bench.life(self.run, "life", self.look)
        self._writes = Samples.of([writes.total if writes is not None else None])
        self.notes.append(f"- API writes: {writes}; renewals of the Lease are not counted.")

    async def _applied(self) -> tuple[list[Owner], list[Owner], list[Owner], list[Owner]]:
        self.say(f"applied: {ROUNDS} rounds of 1, then {MANY} at once")
        measure = "applied to pod created"
        owners: dict[Contender, list[Owner]] = {self.run: [], self.job: []}
        seconds: dict[Contender, list[float | None]] = {self.run: [], self.job: []}
        for number in range(ROUNDS):
            for kind in (self.run, self.job):
                made, took = await self.bench.applied(kind, [f"single-{number}"])
                owners[kind] += made
                seconds[kind] += took
        self._row(measure, 1, seconds[self.run], seconds[self.job])
        names = [f"many-{number}" for number in range(MANY)]
        runs, ours = await self.bench.applied(self.run, names)
        jobs, theirs = await self.bench.applied(self.job, names)
        self._row(measure, MANY, ours, theirs)
        return owners[self.run], owners[self.job], runs, jobs

    async def _interrupted(
        self, run_singles: list[Owner], job_singles: list[Owner], runs: list[Owner], jobs: list[Owner]
    ) -> None:
        self.say(f"the operator interrupted: {ROUNDS} rounds of 1, {MANY} at once, {len(BACK_OFF)} in a row")
        our_singles = await self._one_by_one(self.run, run_singles)
        our_many = await self.bench.interrupted(self.run, runs)
        our_row = await self.bench.in_a_row(self.run, runs[0], len(BACK_OFF))
        self.say(f"the Job controller interrupted: the same; its back-off alone takes {sum(BACK_OFF) + BACK_OFF[0]} s")
        # Its seconds are a timer's, which a neighbour's timer does not disturb: so these two go on together.
        their_singles, their_row = await asyncio.gather(
            self._one_by_one(self.job, job_singles[1:]), self.bench.in_a_row(self.job, job_singles[0], len(BACK_OFF))
        )
        their_many = await self.bench.interrupted(self.job, jobs)
        measure, policy = "interrupted to replacement created", "Job controller's policy"
        self._row(f"{measure} ({policy}: {BACK_OFF[0]} s)", 1, our_singles, their_singles)
        self._row(f"{measure} ({policy}: {BACK_OFF[0]} s)", MANY, our_many, their_many)
        for number, (ours, theirs) in enumerate(zip(our_row, their_row, strict=True)):
            self._row(
                f"{measure}, interruption {number + 1} in a row ({policy}: {BACK_OFF[number]} s)", 1, [ours], [theirs]
            )

    async def _one_by_one(self, kind: Contender, owners: list[Owner]) -> list[float | None]:
        return [(await self.bench.interrupted(kind, [owner]))[0] for owner in owners]

    def _footprint(self, operator: psutil.Process, manager: psutil.Process, runs: int) -> None:
        self.rows.append(Row("API writes: applied, interrupted twice, deleted, gone", 1, self._writes, unit=""))
        for what, unit, value in (("memory (RSS)", "MiB", _memory), ("CPU time since the start", "s", _processor)):
            ours, theirs = Samples.of([value(operator)]), Samples.of([value(manager)])
            self.rows.append(Row(f"{what} (beside it: all of kube-controller-manager)", runs, ours, theirs, unit))

    def _row(self, measure: str, number: int, ours: list[float | None], theirs: list[float | None]) -> None:
        self.rows.append(Row(measure, number, Samples.of(ours), Samples.of(theirs)))


def _memory(process: psutil.Process) -> float | None:
    """MiB; None for a process that has ended: another one in its place has had another life."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_info().rss / 2**20
    return None


def _processor(process: psutil.Process) -> float | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return None
