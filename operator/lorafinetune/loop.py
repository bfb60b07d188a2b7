"""Observe, decide, act: one level-triggered loop per run. Watches, webhooks and timers only wake it.

It always decides from what is there now, so that losing any of them costs time, never correctness.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

from lorafinetune.act import Actor, Witness
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.contract.event import Event, EventType
from lorafinetune.engine.decision import Announcement
from lorafinetune.engine.observation import Observation, RunSeen
from lorafinetune.engine.progress import Progress, fold, is_news
from lorafinetune.engine.rules import decide
from lorafinetune.jobs import Jobs
from lorafinetune.kube import errors, pods, seen, status
from lorafinetune.kube.client import PODS, RUNS, Cluster
from lorafinetune.kube.store import Change, Store
from lorafinetune.kube.stores import Stores
from lorafinetune.queue import WorkQueue
from lorafinetune.receiver.judge import Current, Delivery
from lorafinetune.telemetry import Metrics

Object = dict[str, Any]

WORKERS: Final = 8
"""Runs that are worked on at once."""
RETRY: Final = 5.0
"""Seconds until a pass that failed is repeated."""
UNREADABLE: Final = 60.0
"""Seconds until a run that cannot be read is looked at again."""
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
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._witness = witness
        self._metrics = metrics
        self._clock = clock
        self._collect_timeout = collect_timeout
        self._queue = WorkQueue(clock)
        self._jobs = make_jobs(self.wake)
        self._progress: dict[str, Progress] = {}
        self._actor = Actor(cluster, stores, trainer, jobs=self._jobs, witness=witness, wake=self.wake, clock=clock)

    # What wakes it

    def wake(self, uid: str, after: float = 0.0) -> None:
        """Have the run looked at."""
        self._queue.add(uid, after)
        self._metrics.queued(len(self._queue))

    def run_changed(self, change: Change) -> None:
        """Take news of a run; one that is gone is forgotten."""
        for thing in (change.old, change.new):
            if thing is not None:
                self.wake(thing["metadata"]["uid"])
        if change.new is None and change.old is not None:
            self._forget(change.old["metadata"]["uid"])

    def pod_changed(self, change: Change) -> None:
        """Take news of an attempt's pod."""
        for thing in (change.old, change.new):
            if thing is not None and (uid := thing["metadata"].get("labels", {}).get(seen.LABEL_RUN_UID)):
                self.wake(uid)

    def node_changed(self, change: Change) -> None:
        """Take news of a node: it concerns the runs whose pods are bound to it, if it matters to them at all."""
        before, after = (seen.node_seen(one) if one is not None else None for one in (change.old, change.new))
        if before == after:
            return
        for pod in self._stores.pods:
            if pod.get("spec", {}).get("nodeName") == change.key[1]:
                self.wake(pod["metadata"]["labels"][seen.LABEL_RUN_UID])

    def pool_changed(self, _change: Change) -> None:
        """Take news of a pool: it may concern every run."""
        for run in self._stores.runs:
            self.wake(run["metadata"]["uid"])

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
            async with asyncio.TaskGroup() as workers:
                for _ in range(WORKERS):
                    workers.create_task(self._work())
        finally:
            await self._jobs.close()

    async def _work(self) -> None:
        while True:
            uid = await self._queue.take()
            self._metrics.taken(len(self._queue), self._queue.waited)
            try:
                again = await self._pass(uid)
                if again is not None:
                    self._queue.add(uid, again)
            finally:
                self._queue.done(uid)

    async def _pass(self, uid: str) -> float | None:
        """Look at one run, decide, act; return when to look again. Never raises: a pass that failed is repeated."""
        run = self._run(uid)
        if run is None:
            return await self._orphans(uid)
        about = seen.run_seen(run)
        try:
            with self._metrics.reconcile():
                observation = self._observe(run, about)
                decision = decide(observation)
                await self._actor.act(run, observation, decision)
        except errors.Conflict:
            return await self._read_again(run)
        except errors.NotFound:
            return await self._read_again(run)
        except errors.ClusterError as error:
            self._witness.failed(about, error)
            return RETRY
        except ValidationError as error:
            return await self._unreadable(run, about, error)
        except Exception as error:
            _log.exception("pass failed", extra={"uid": uid, "run": f"{about.namespace}/{about.name}"})
            self._witness.failed(about, error)
            await self._give_up(run, about, f"{type(error).__name__}: {error}")
            return RETRY
        self._witness.decided(about, decision)
        return decision.look_again

    def _observe(self, run: Object, about: RunSeen) -> Observation:
        own = sorted(self._pods(about), key=_attempt)
        bound = {pod["spec"]["nodeName"] for pod in own if pod.get("spec", {}).get("nodeName")}
        nodes = {name: seen.node_seen(node) for name in bound if (node := self._stores.nodes.get(name)) is not None}
        return Observation(
            run=about,
            spec=LoRAFineTuneSpec.model_validate(run["spec"]),
            status=status.parse(run),
            pods=tuple(seen.pod_seen(pod) for pod in own),
            nodes=nodes,
            pools=_pools(self._stores.pools),
            now=self._clock(),
            progress=self._progress.get(about.uid),
            storage=self._jobs.seen(about.uid),
            refusal=self._actor.refusals.get(about.uid),
            collect_timeout=self._collect_timeout,
        )

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
            if fresh is not None:
                self._stores.pods.learn(fresh)
        return 0.1

    async def _unreadable(self, run: Object, about: RunSeen, error: ValidationError) -> float:
        """A run that the schema took and we cannot read (from another version of us) is left alone, but never stuck."""
        first = error.errors()[0]
        message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        self._witness.failed(about, error)
        self._witness.announced(run, Announcement("Unreadable", message, warning=True))
        await self._give_up(run, about, message)
        return UNREADABLE

    async def _give_up(self, run: Object, about: RunSeen, message: str) -> None:
        """Let a deleted run go that no pass can be finished for, once its time is up: nothing is stuck for ever."""
        if about.deleting_since is None or not about.has_finalizer:
            return
        if self._clock() - about.deleting_since < self._collect_timeout:
            return
        await self._witness.abandoned(about, (run.get("status") or {}).get("prefix", ""), message)
        try:
            await self._actor.let_go(run)
        except errors.ClusterError as failure:
            self._witness.failed(about, failure)

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

    def _run(self, uid: str) -> Object | None:
        return next(iter(self._stores.runs.indexed(uid)), None)

    def _pods(self, run: RunSeen) -> list[Object]:
        return [pod for pod in self._stores.pods.indexed(run.uid) if pods.is_ours(pod, run)]

    def _forget(self, uid: str) -> None:
        self._jobs.forget(uid)
        self._progress.pop(uid, None)
        self._actor.refusals.pop(uid, None)
        self._witness.forgotten(uid)


def _attempt(pod: Object) -> int:
    return int(pod["metadata"]["labels"][seen.LABEL_ATTEMPT])


def _pools(store: Store) -> dict[str, GPUPoolSpec]:
    """Return the pools that can be read; one that cannot is left out with a log line, for others must go on."""
    found = {}
    for pool in store:
        try:
            found[pool["metadata"]["name"]] = GPUPoolSpec.model_validate(pool["spec"])
        except ValidationError as error:
            _log.warning("GPUPool %s cannot be read: %s", pool["metadata"]["name"], error.errors()[0]["msg"])
    return found
