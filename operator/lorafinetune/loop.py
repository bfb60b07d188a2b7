"""Observe, decide, act: one level-triggered loop per run. Watches, webhooks and timers only wake it.

It always decides from what is there now, so that losing any of them costs time, never correctness.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pydantic import ValidationError

from lorafinetune import pressing
from lorafinetune.act import Actor, Witness
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.catalogue import Catalogue
from lorafinetune.census import Census
from lorafinetune.complaints import Complaints
from lorafinetune.contract.event import Event, EventType
from lorafinetune.engine.fleet import Fleet
from lorafinetune.engine.notices import DEFAULT, Marks
from lorafinetune.engine.observation import CURRENCY, NodeSeen, Observation, RunSeen
from lorafinetune.engine.progress import Progress, fold, is_news
from lorafinetune.engine.rules import decide
from lorafinetune.jobs import Jobs
from lorafinetune.kube import errors, pods, seen, status
from lorafinetune.kube.client import PODS, RUNS, Cluster
from lorafinetune.kube.evidence import EventReader
from lorafinetune.kube.store import Change
from lorafinetune.kube.stores import Stores
from lorafinetune.places import Places
from lorafinetune.queue import WorkQueue
from lorafinetune.receiver.judge import Current, Delivery
from lorafinetune.telemetry import Metrics
from lorafinetune.turns import Rank, Turn, Turns, nobody_waits

Object = dict[str, Any]

WORKERS: Final = 16
"""Runs that are worked on at once."""
SOON: Final = 1.0
"""A run that wants to be looked at again within so many seconds is in the middle of something: it is urgent."""
POOL_SPREAD: Final = 5.0
"""Seconds over which all runs are looked at when a pool has changed."""
RETRY: Final = 5.0
"""Seconds until a pass that failed is repeated."""
FIRST_RETRY: Final = 0.1
"""Seconds until a pass is repeated that was decided upon what is no longer there; twice as many each time, in a row."""
WRITE_EVERY: Final = 1.0
"""Seconds between two status writes for mere progress."""

_log = logging.getLogger(__name__)


class Loop:
    """Drives every run from its stores, with one pass at a time for each."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        trainer: pods.Trainer,
        *,
        witness: Witness,
        metrics: Metrics,
        make_jobs: Callable[[Callable[[str], None]], Jobs],
        clock: Callable[[], float],
        collect_timeout: float,
        currency: str = CURRENCY,
        resumed_at: Callable[[], float] = lambda: float("-inf"),
        marks: Marks = DEFAULT,
    ) -> None:
        """*resumed_at* returns when the last break of a watch was over, in Unix seconds."""
        self._cluster = cluster
        self._stores = stores
        self._witness = witness
        self._metrics = metrics
        self._clock = clock
        self._collect_timeout = collect_timeout
        self._currency = currency
        self._resumed_at = resumed_at
        self._census = Census(stores.nodes.get, clock)
        self._places = Places(stores.pods, stores.runs)
        self._queue = WorkQueue(clock)
        self._turns = Turns(WORKERS, self._queue.presses)
        self._jobs = make_jobs(lambda uid: self.wake(uid, urgent=True))
        self._progress: dict[str, Progress] = {}
        self._catalogue = Catalogue(stores.pools)
        self._conflicts: dict[str, int] = {}
        """Passes in a row of each run that were decided upon what was no longer there."""
        self._specs: dict[str, tuple[int, float]] = {}
        """Generation of each run's spec, and when it was first seen."""
        self._marks = marks
        self._events = EventReader(cluster, wake=self.wake, clock=clock)
        self._actor = Actor(
            cluster,
            stores,
            trainer,
            jobs=self._jobs,
            events=self._events,
            witness=witness,
            wake=self.wake,
            clock=clock,
        )
        self._complaints = Complaints(
            cluster, stores, self._actor, witness, clock=clock, collect_timeout=collect_timeout
        )

    def begin(self) -> None:
        """Take stock of the stores, whose earlier news nobody heard, and have every run looked at."""
        self._census.begin(self._stores.pods)
        self._catalogue.changed()
        self._places.begin(self._stores.runs, self._clock())
        for run in self._stores.runs:
            uid = run["metadata"]["uid"]
            self.wake(uid, urgent=pressing.lacks_pod(run, self._stores.pods.indexed(uid)))
        for pod in self._stores.pods:
            self.wake(pod["metadata"]["labels"][seen.LABEL_RUN_UID])

    def pools_known(self) -> tuple[dict[str, GPUPoolSpec], Fleet]:
        """Return the pools that can be read, and what all runs together know of them."""
        pools = self._catalogue.pools()
        return pools, self._places.fleet(pools)

    # What wakes it

    def wake(self, uid: str, after: float = 0.0, *, urgent: bool = False) -> None:
        """Have the run looked at."""
        order = pressing.order(self._run(uid)) if urgent else ""
        self._queue.add(uid, after, urgent=urgent, order=order)
        self._metrics.queued(len(self._queue))

    def run_changed(self, change: Change) -> None:
        """Take news of a run; one that is gone is forgotten."""
        urgent = pressing.of_run(change)
        for thing in (change.old, change.new):
            if thing is not None:
                self.wake(thing["metadata"]["uid"], urgent=urgent)
                self._count(thing["metadata"]["uid"])
        if change.new is None and change.old is not None:
            self._places.gone(change.old, self._clock())
            self._forget(change.old["metadata"]["uid"])

    def pod_changed(self, change: Change) -> None:
        """Take news of an attempt's pod."""
        self._census.pod_changed(change)
        urgent = pressing.of_pod(change)
        for thing in (change.old, change.new):
            if thing is not None and (uid := thing["metadata"].get("labels", {}).get(seen.LABEL_RUN_UID)):
                self.wake(uid, urgent=urgent)
                self._count(uid)
        if change.old is not None and (change.new is None or _uid(change.new) != _uid(change.old)):
            self._events.forget(_uid(change.old))

    def _count(self, uid: str) -> None:
        """Count the places that a run takes anew; who has waited longest for one that it has given up is next."""
        if (waiter := self._places.changed(uid)) is not None:
            self.wake(waiter, urgent=True)

    def node_changed(self, change: Change) -> None:
        """Take news of a node: it concerns the runs whose pods are bound to it, if it matters to them at all."""
        before, after = (self._node(one) if one is not None else None for one in (change.old, change.new))
        if before == after:
            return
        self._census.node_changed(change.key[1])
        for namespace, name in self._census.pods_on(change.key[1]):
            if (pod := self._stores.pods.get(name, namespace)) is not None:
                self.wake(pod["metadata"]["labels"][seen.LABEL_RUN_UID], urgent=True)

    def pool_changed(self, change: Change) -> None:
        """Take news of a pool: it may concern every run, but not all at once."""
        self._catalogue.changed()
        if not self._places.pool_changed(change):
            return
        for run in self._stores.runs:
            self.wake(run["metadata"]["uid"], random.uniform(0, POOL_SPREAD))

    # What the receiver asks

    def current(self, uid: str) -> Current | None:
        """Return the run's newest attempt, which alone may speak; None if there is no such run."""
        run = self._run(uid)
        if run is None:
            return None
        newest = max(self._pods(seen.run_seen(run)), key=_attempt, default=None)
        number = _attempt(newest) if newest is not None else 0
        written = int((run.get("status") or {}).get("attempt") or 0)
        if written > number:
            return Current(run["metadata"]["namespace"], written, None)
        return Current(run["metadata"]["namespace"], number, newest["metadata"]["uid"] if newest is not None else None)

    def deliver(self, event: Event) -> Delivery:
        """Fold an authenticated event of the current attempt."""
        uid = event.run_uid
        progress = self._known_progress(uid, event.attempt)
        if not is_news(progress, event):
            return Delivery.STALE
        self._progress[uid] = fold(progress, event, self._clock())
        level = logging.DEBUG if event.type is EventType.PROGRESS else logging.INFO
        _log.log(level, "event %s", event.type, extra={"uid": uid, "attempt": event.attempt, "step": event.step})
        self.wake(uid, WRITE_EVERY if event.type is EventType.PROGRESS else 0.0)
        return Delivery.ACCEPTED

    def _known_progress(self, uid: str, attempt: int) -> Progress:
        known = self._progress.get(uid)
        if known is not None and known.attempt == attempt:
            return known
        run = self._run(uid) or {}
        written = run.get("status") or {}
        # After a restart the status remembers which events are folded in, so that a replay stays one.
        return Progress(attempt, int(written.get("eventSequence") or 0) if written.get("attempt") == attempt else 0)

    # The loop

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as passes:
                for urgent in (True, False):
                    passes.create_task(self._hand_out(urgent, passes))
        finally:
            await self._events.close()
            await self._jobs.close()

    async def _hand_out(self, urgent: bool, passes: asyncio.TaskGroup) -> None:
        """Start a pass for each key of one line of the queue, in its turn."""
        while True:
            uid, waited = await self._queue.take(urgent=urgent)
            self._metrics.taken(len(self._queue), waited)
            turn = await self._turns.take(Rank.URGENT if urgent else Rank.ORDINARY)
            passes.create_task(self._work(uid, turn))

    async def _work(self, uid: str, turn: Turn) -> None:
        try:
            again = await self._pass(uid, turn.give_way)
            if again is not None:
                self.wake(uid, again, urgent=again < SOON)
        finally:
            turn.end()
            self._queue.done(uid)

    async def _pass(self, uid: str, give_way: Callable[[], Awaitable[None]] = nobody_waits) -> float | None:
        """Look at one run, decide, act; return when to look again. Never raises: a pass that failed is repeated."""
        run = self._run(uid)
        if run is None:
            return await self._orphans(uid)
        about = seen.run_seen(run)
        try:
            with self._metrics.reconcile():
                observation = self._observe(run, about)
                decision = decide(observation)
                try:
                    with self._places.kept(observation, decision):
                        held = await self._actor.act(run, observation, decision, give_way)
                finally:
                    self._count(uid)  # no watch brings what this operator has written itself
            self._conflicts.pop(uid, None)
            self._complaints.forget(uid)
        except errors.Conflict:
            return await self._read_again(run)
        except errors.NotFound:
            return await self._read_again(run)
        except errors.ClusterError as error:
            self._witness.failed(about, error)
            return RETRY
        except ValidationError as error:
            return await self._complaints.unreadable(run, about, error)
        except Exception as error:
            return await self._complaints.failing(run, about, error)
        if held is None or decision.makes_attempt:
            self._witness.decided(about, decision)
        return decision.next_look if held is None else held

    def _observe(self, run: Object, about: RunSeen) -> Observation:
        own = sorted(self._pods(about), key=_attempt)
        bound = {pod["spec"]["nodeName"] for pod in own if pod.get("spec", {}).get("nodeName")}
        pools = self._catalogue.pools()
        nodes = {name: self._node(node) for name in bound if (node := self._stores.nodes.get(name)) is not None}
        return Observation(
            run=about,
            spec=LoRAFineTuneSpec.model_validate(run["spec"]),
            status=status.parse(run),
            pods=tuple(seen.pod_seen(pod, self._events.told(_uid(pod))) for pod in own),
            nodes=nodes,
            pools=pools,
            now=self._clock(),
            progress=self._progress.get(about.uid),
            fleet=self._places.fleet(pools),
            cluster=self._census.cluster(self._resumed_at()),
            storage=self._jobs.seen(about.uid),
            spec_since=self._spec_since(about),
            refusal=self._actor.refusals.get(about.uid),
            collect_timeout=self._collect_timeout,
            currency=self._currency,
        )

    def _spec_since(self, about: RunSeen) -> float:
        generation, since = self._specs.get(about.uid, (0, 0.0))
        if generation != about.generation:
            self._specs[about.uid] = (about.generation, since := self._clock())
        return since

    async def _read_again(self, run: Object) -> float:
        """What was decided upon is not what is there: read it, and decide anew."""
        metadata = run["metadata"]
        try:
            found = await self._cluster.get(RUNS, metadata["name"], metadata["namespace"])
        except errors.ClusterError:
            return RETRY
        if found is None or found["metadata"]["uid"] != metadata["uid"]:
            change = self._stores.runs.take("DELETED", run)
            if change is not None:
                self.run_changed(change)
            return 0.0
        self._stores.runs.learn(found)
        for pod in self._pods(seen.run_seen(found)):
            try:
                fresh = await self._cluster.get(PODS, pod["metadata"]["name"], metadata["namespace"])
            except errors.ClusterError:
                return RETRY
            if fresh is not None and (change := self._stores.pods.learn(fresh)) is not None:
                self._census.pod_changed(change)
        self._count(metadata["uid"])
        # One is a race that was lost; many in a row come from something that will go on saying no.
        row = self._conflicts[metadata["uid"]] = self._conflicts.get(metadata["uid"], 0) + 1
        return min(RETRY, FIRST_RETRY * 2.0 ** min(row - 1, 16))

    async def _orphans(self, uid: str) -> float | None:
        """A run is gone; pods that it left behind held are let go (the garbage collector deletes them)."""
        try:
            for pod in self._stores.pods.indexed(uid):
                metadata = pod["metadata"]
                owners = {one["uid"]: one["name"] for one in metadata.get("ownerReferences") or ()}
                # A label may be on anybody's pod; our finalizer is on ours alone. Deleting with --cascade=orphan takes
                # the owner away, but not before this operator had ended the pod.
                if seen.POD_FINALIZER not in metadata.get("finalizers", ()) or (owners and uid not in owners):
                    continue
                if uid in owners:
                    owner = await self._cluster.get(RUNS, owners[uid], metadata["namespace"])
                    if owner is not None and owner["metadata"]["uid"] == uid:
                        return RETRY  # not gone: our store of runs has yet to hear of it
                await self._cluster.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
                await self._actor.release(pod)
        except errors.ClusterError as error:
            _log.warning("pods of the gone run %s could not be let go: %s", uid, error)
            return RETRY
        except Exception:
            # What this looks at may be anybody's: no object that somebody can make may end this process.
            _log.exception("pods of the gone run %s could not be let go", uid)
            return RETRY
        return None

    def _node(self, node: Object) -> NodeSeen:
        return seen.node_seen(node, self._marks)

    def _run(self, uid: str) -> Object | None:
        return next(iter(self._stores.runs.indexed(uid)), None)

    def _pods(self, run: RunSeen) -> list[Object]:
        return [pod for pod in self._stores.pods.indexed(run.uid) if pods.is_ours(pod, run)]

    def _forget(self, uid: str) -> None:
        self._jobs.forget(uid)
        self._progress.pop(uid, None)
        self._specs.pop(uid, None)
        self._conflicts.pop(uid, None)
        self._complaints.forget(uid)
        self._actor.forget(uid)
        self._witness.forgotten(uid)


def _uid(thing: Object) -> str:
    return str(thing["metadata"]["uid"])


def _attempt(pod: Object) -> int:
    return int(pod["metadata"]["labels"][seen.LABEL_ATTEMPT])
