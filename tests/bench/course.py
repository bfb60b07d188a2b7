"""The course of one bench: which measures, in which order, into which rows. Ours first, then the Job controller's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import psutil

from examples.stage import OPERATOR, Stage
from localcluster.api import Api
from tests.bench.contenders import Contender
from tests.bench.footprint import idle
from tests.bench.lives import Lives
from tests.bench.measures import Bench, Owner, Wave, until
from tests.bench.population import Template, populate, template
from tests.bench.samples import Samples
from tests.bench.scrape import Writes, looked_at
from tests.bench.table import Row

ROUNDS = 5
"""How often what is done one at a time is repeated."""
GAP = 0.5
"""Seconds between two interruptions of Jobs that count as one at a time: their 10 s are a timer's."""
FAILOVERS = 2
CHECKPOINTS = (1, 5)
"""Of the two lives whose difference says what a checkpoint costs."""
BACK_OFF = "Job controller's policy: 10 s"


@dataclass(slots=True)
class Course:
    """Runs the measures and keeps the rows, those before a failure too."""

    stage: Stage
    api: Api
    bench: Bench
    lives: Lives
    run: Contender
    job: Contender
    look: Callable[[], Awaitable[Writes]]
    say: Callable[[str], None]
    sizes: Sequence[int]
    real: bool
    """Whether one run is trained by a real trainer."""
    crowds: Sequence[int]
    """How many idle runs there are while nothing happens."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _runs: list[Owner] = field(default_factory=list, init=False)
    """The first ones wait for a node."""
    _models: list[Template] = field(default_factory=list, init=False)

    async def measure(self) -> None:
        """Go the whole course. Raises TimeoutError if something that is waited for does not come."""
        await self._life()
        if self.real:
            await self._real()
        for size in self.sizes:
            await (self._one_by_one() if size == 1 else self._wave(size))
        await self._failover("failover", FAILOVERS)
        for crowd in self.crowds:
            await self._grow(crowd)
            await self._cold_start(crowd)
            await self._idle(crowd)
            await self._failover(f"failover-{crowd}", 1)

    async def _life(self) -> None:
        self.say("the first of each kind")
        _, ours = await self.bench.applied(self.run, ["first"])
        _, theirs = await self.bench.applied(self.job, ["first"])
        self._row("first", "applied to pod created, first one after the start", 1, ours.each, theirs.each)
        await self.bench.deleted(self.run, "first")
        await self.bench.deleted(self.job, "first")
        self.say("API writes of whole lives")
        what = "API writes: applied, interrupted twice, deleted, gone"
        self._writes("life-writes", what, await self.lives.short("life"))
        few, many = CHECKPOINTS
        less, more = [await self.lives.hollow(f"checkpoints-{one}", one) for one in CHECKPOINTS]
        told = "applied, interrupted once, {} checkpoints, finished, deleted, gone"
        self._writes("whole-life-writes", f"API writes: {told.format(many)}", more)
        each = Samples(((more.total - less.total) / (many - few),))
        self.rows.append(Row("checkpoint-writes", "API writes for each checkpoint more", many - few, each, unit=""))

    async def _real(self) -> None:
        self.say("a real trainer trains the tiny SDXL")
        writes, checkpoints = await self.lives.real("real")
        what = f"API writes: applied, trained with {checkpoints} checkpoints, verified, deleted, gone"
        self._writes("real-life-writes", what, writes, tier="real")

    def _writes(self, key: str, measure: str, writes: Writes, tier: str = "hollow") -> None:
        self.rows.append(Row(key, measure, 1, Samples((float(writes.total),)), unit="", tier=tier))
        self.notes.append(f"- {measure} ({tier}): {writes}; renewals of the Lease are not counted.")

    async def _one_by_one(self) -> None:
        self.say(f"one at a time, {ROUNDS} times")
        owners: dict[Contender, list[Owner]] = {self.run: [], self.job: []}
        seconds: dict[Contender, list[float | None]] = {self.run: [], self.job: []}
        for number in range(ROUNDS):
            for kind in (self.run, self.job):
                made, wave = await self.bench.applied(kind, [f"single-{number}"])
                owners[kind] += made
                seconds[kind] += wave.each
        self._row("applied-1", "applied to pod created", 1, seconds[self.run], seconds[self.job])
        ours = [(await self.bench.interrupted(self.run, [one])).each[0] for one in owners[self.run]]
        theirs = await self.bench.spread_out(self.job, owners[self.job], GAP)
        self._row("replaced-1", f"interrupted to replacement created ({BACK_OFF})", 1, ours, theirs)
        self._runs += owners[self.run]

    async def _wave(self, size: int) -> None:
        self.say(f"{size} at once: applied")
        names = [f"wave-{size}-{number}" for number in range(size)]
        jobs, job_wave = await self.bench.applied(self.job, names)
        runs, run_wave = await self.bench.applied(self.run, names)
        self._row(f"applied-{size}", "applied to pod created", size, run_wave.each, job_wave.each)
        self._rate(f"applied-rate-{size}", "applied: pods created per second", size, run_wave, job_wave)
        self.say(f"{size} at once: interrupted")
        job_wave = await self.bench.interrupted(self.job, jobs)
        run_wave = await self.bench.interrupted(self.run, runs)
        what = f"interrupted to replacement created ({BACK_OFF})"
        self._row(f"replaced-{size}", what, size, run_wave.each, job_wave.each)
        self._rate(f"replaced-rate-{size}", "interrupted: pods created per second", size, run_wave, job_wave)
        self._runs += runs

    def _rate(self, key: str, measure: str, size: int, ours: Wave, theirs: Wave) -> None:
        self.rows.append(Row(key, measure, size, Samples.of([ours.rate]), Samples.of([theirs.rate]), "/s"))

    async def _failover(self, key: str, times: int) -> None:
        self.say(f"the leader is killed, {times} times")
        seconds: list[float | None] = []
        for owner in self._runs[:times]:
            await asyncio.to_thread(self.stage.start_standby)
            number, begin = self.bench.pods_of(owner), time.monotonic()
            await asyncio.to_thread(self.stage.kill_operator)
            await self.bench.interrupt(self.run, owner)
            seconds.append(await self.bench.replaced(self.run, owner, number, begin))
            # The standby is sent away and the first one leads again, for it is that which is asked for its metrics.
            await asyncio.to_thread(self.stage.stop_standby)
            await asyncio.to_thread(self.stage.start_operator)
        self._row(key, "leader killed to replacement created by the standby", len(self._runs), seconds)

    async def _grow(self, crowd: int) -> None:
        missing = crowd - len(self._runs)
        if missing <= 0:
            return
        self.say(f"{missing} idle runs more, written while no operator runs")
        if not self._models:
            await self.bench.applied(self.run, ["waits"])
            await self.lives.suspended("suspended")
            await self.lives.finished("finished", 2)
            await self.bench.quiet(self.look)
            names = {"waits": True, "suspended": False, "finished": False}
            self._models = [await template(self.api, name, waits=waits) for name, waits in names.items()]
        await asyncio.to_thread(self.stage.stop_operator)
        self._runs += await populate(self.api, self._models, [f"crowd-{crowd}-{number}" for number in range(missing)])

    async def _cold_start(self, crowd: int) -> None:
        count = len(self._runs)
        self.say(f"cold start with {count} runs")
        await asyncio.to_thread(self.stage.stop_operator)
        # One that ended while nobody looked is the decision that matters. It is neither the first nor the last listed.
        owner = self._runs[0]
        number = self.bench.pods_of(owner)
        await self.bench.interrupt(self.run, owner)
        begin = time.monotonic()
        starting = asyncio.create_task(asyncio.to_thread(self.stage.start_operator))
        decided = await self.bench.replaced(self.run, owner, number, begin)
        await starting

        async def all_looked_at() -> bool:
            return looked_at(await asyncio.to_thread(self.stage.metrics)) >= count

        await until(f"all {count} runs are looked at", all_looked_at)
        every = time.monotonic() - begin
        self._row(f"cold-{crowd}", "cold start: process started to its first pod", count, [decided])
        self._row(f"cold-all-{crowd}", "cold start: process started to every run looked at", count, [every])

    async def _idle(self, crowd: int) -> None:
        count = len(self._runs)
        await self.bench.quiet(self.look)
        self.say(f"nothing happens to {count} idle runs")
        status = self.stage.cluster.status()
        pids = (status["guests"][OPERATOR]["pid"], status["control_plane"]["kube-controller-manager"])
        (ours, theirs), writes = await idle([psutil.Process(int(pid)) for pid in pids], self.look)
        beside = "(beside it: all of kube-controller-manager)"
        for key, what, unit, one, other in (
            ("memory", "idle: memory (RSS)", "MiB", ours.memory, theirs.memory),
            ("processor", "idle: CPU, percent of a core", "%", ours.processor, theirs.processor),
        ):
            sides = Samples.of([one]), Samples.of([other])
            self.rows.append(Row(f"idle-{key}-{crowd}", f"{what} {beside}", count, *sides, unit=unit))
        # One renewal of the Lease more or less may lie between the two looks.
        each = max(0, writes.total - 1) / count
        self.rows.append(Row(f"idle-writes-{crowd}", "idle: API writes per run", count, Samples((each,)), unit=""))

    def _row(
        self,
        key: str,
        measure: str,
        number: int,
        ours: Sequence[float | None],
        theirs: Sequence[float | None] | None = None,
    ) -> None:
        jobs = Samples.of(theirs) if theirs is not None else None
        self.rows.append(Row(key, measure, number, Samples.of(ours), jobs))
