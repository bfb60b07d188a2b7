"""Observe, decide, act: one level-triggered loop per run. Watches, webhooks and timers only wake it.

It always decides from what is there now, so that losing any of them costs time, never correctness.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import ValidationError

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.contract.event import Event, EventType
from lorafinetune.engine.decision import (
    Abandon,
    Action,
    AddFinalizer,
    Announcement,
    CreatePod,
    Decision,
    DeletePod,
    ReleasePod,
    RemoveFinalizer,
    StartJob,
)
from lorafinetune.engine.observation import Observation, Refusal, RunSeen
from lorafinetune.engine.progress import Progress, fold, is_news
from lorafinetune.engine.rules import decide
from lorafinetune.jobs import Jobs
from lorafinetune.kube import errors, pods, seen, status
from lorafinetune.kube.client import PODS, RUNS, Cluster, Resource
from lorafinetune.kube.store import Change, Store
from lorafinetune.kube.stores import NamespacedStore
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


class Witness(Protocol):
    """What the loop tells the outside about its work: Kubernetes events, metrics, abandoned prefixes."""

    def decided(self, run: RunSeen, decision: Decision) -> None:
        """Take what was decided and done."""

    def failed(self, run: RunSeen, error: Exception) -> None:
        """Take a pass that could not be finished and will be repeated."""

    def announced(self, run: Object, announcement: Announcement) -> None:
        """Tell people of something on the run, after it has been written down."""

    def forgotten(self, uid: str) -> None:
        """Drop what is remembered of a run that is gone."""

    async def abandoned(self, run: RunSeen, prefix: str, message: str) -> None:
        """Record a prefix that is left behind."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What the cluster holds, as last heard."""

    runs: Store
    """Indexed by UID."""
    pods: NamespacedStore
    """Indexed by the run's UID."""
    nodes: Store
    pools: Store


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
        self._trainer = trainer
        self._witness = witness
        self._metrics = metrics
        self._clock = clock
        self._collect_timeout = collect_timeout
        self._queue = WorkQueue(clock)
        self._jobs = make_jobs(self.wake)
        self._progress: dict[str, Progress] = {}
        self._refusals: dict[str, Refusal] = {}

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
        newest = max(self._pods(uid), key=_attempt, default=None)
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
                await self._act(run, observation, decision)
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
            return RETRY
        self._witness.decided(about, decision)
        return decision.look_again

    def _observe(self, run: Object, about: RunSeen) -> Observation:
        own = sorted(self._pods(about.uid), key=_attempt)
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
            refusal=self._refusals.get(about.uid),
            collect_timeout=self._collect_timeout,
        )

    async def _act(self, run: Object, observation: Observation, decision: Decision) -> None:
        """Creates and deletes first, then the status, then the telling; letting go comes last of all."""
        about = observation.run
        for action in decision.actions:
            if not isinstance(action, RemoveFinalizer):
                await self._do(action, run, observation)
        if any(isinstance(action, RemoveFinalizer) for action in decision.actions):
            for announcement in decision.announcements:
                self._witness.announced(run, announcement)
            await self._patch_finalizers(run, remove=seen.RUN_FINALIZER)
            return
        run = self._run(about.uid) or run
        if status.differs(run, decision.status):
            self._stores.runs.learn(await status.write(self._cluster, run, decision.status))
        for announcement in decision.announcements:
            self._witness.announced(run, announcement)

    async def _do(self, action: Action, run: Object, observation: Observation) -> None:
        about = observation.run
        match action:
            case AddFinalizer():
                await self._patch_finalizers(run, add=seen.RUN_FINALIZER)
            case CreatePod():
                await self._create(action, observation)
            case DeletePod(name, uid):
                await self._cluster.delete(PODS, name, about.namespace, uid=uid)
            case ReleasePod(name, uid):
                await self._release(name, uid, about.namespace)
            case StartJob(job):
                self._jobs.start(job, about, observation.spec, observation.status.attempt or len(observation.pods))
            case Abandon(message):
                await self._witness.abandoned(about, observation.status.prefix or "", message)
            case RemoveFinalizer():
                raise AssertionError("letting go comes after everything else")

    async def _create(self, create: CreatePod, observation: Observation) -> None:
        about, spec = observation.run, observation.spec
        for field, secret in (
            ("storage.credentialsSecret", spec.storage.credentials_secret),
            ("baseModel.credentialsSecret", spec.base_model.credentials_secret),
        ):
            # The label is its owner's leave to mount it: else who may create runs could read every Secret here.
            problem = await self._jobs.secret_problem(about.namespace, field, secret) if secret is not None else None
            if problem is not None:
                raise self._refuse(about, problem.reason, str(problem))
        body = pods.build(about, observation.spec, create, self._trainer)
        name = body["metadata"]["name"]
        try:
            pod = await self._cluster.create(PODS, body, about.namespace)
        except errors.AlreadyExists as error:
            found = await self._cluster.get(PODS, name, about.namespace)
            owners = (found or {}).get("metadata", {}).get("ownerReferences", ())
            if found is None or about.uid not in {owner["uid"] for owner in owners}:
                message = f"a pod {name!r} that is not this run's is in the way: delete it"
                raise self._refuse(about, "PodNameTaken", message) from error
            pod = found
        except errors.Refused as error:
            raise self._refuse(about, "CreateRefused", f"the API server refuses the pod: {error}") from error
        self._refusals.pop(about.uid, None)
        self._jobs.drop_artifact(about.uid)
        self._stores.pods.learn(pod)

    def _refuse(self, about: RunSeen, reason: str, message: str) -> errors.Conflict:
        """File a refusal; the pass is repeated at once, and the rules say what it means."""
        self._refusals[about.uid] = Refusal(reason, message, self._clock())
        return errors.Conflict(message)

    async def _release(self, name: str, uid: str, namespace: str) -> None:
        pod = self._stores.pods.get(name, namespace)
        if pod is None or pod["metadata"]["uid"] != uid:
            return
        await self._patch(PODS, self._stores.pods, pod, remove=seen.POD_FINALIZER)

    async def _patch_finalizers(self, run: Object, *, add: str | None = None, remove: str | None = None) -> None:
        await self._patch(RUNS, self._stores.runs, run, add=add, remove=remove)

    async def _patch(
        self,
        resource: Resource,
        store: Store | NamespacedStore,
        thing: Object,
        *,
        add: str | None = None,
        remove: str | None = None,
    ) -> None:
        """Add or remove one finalizer, leaving the others as they were when *thing* was read."""
        metadata = thing["metadata"]
        held = list(metadata.get("finalizers", ()))
        wanted = [one for one in held if one != remove] + ([add] if add is not None and add not in held else [])
        if wanted == held:
            return
        operations: list[Object] = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": "/metadata/finalizers", "value": wanted},
        ]
        answer = await self._cluster.json_patch(resource, metadata["name"], metadata.get("namespace"), operations)
        if answer is not None and store.learn(answer) is not None:
            # The watch will bring nothing new of it: what the write makes possible is looked at now.
            self.wake(metadata["labels"][seen.LABEL_RUN_UID] if resource == PODS else metadata["uid"])

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
        for pod in self._pods(metadata["uid"]):
            try:
                fresh = await self._cluster.get(PODS, pod["metadata"]["name"], metadata["namespace"])
            except errors.ClusterError:
                return RETRY
            if fresh is not None:
                self._stores.pods.learn(fresh)
        return 0.1

    async def _unreadable(self, run: Object, about: RunSeen, error: ValidationError) -> float | None:
        """A run that the schema took and we cannot read (from another version of us) is left alone, but never stuck."""
        first = error.errors()[0]
        message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        self._witness.failed(about, error)
        self._witness.announced(run, Announcement("Unreadable", message, warning=True))
        if about.deleting_since is None or not about.has_finalizer:
            return UNREADABLE
        if self._clock() - about.deleting_since < self._collect_timeout:
            return UNREADABLE
        await self._witness.abandoned(about, (run.get("status") or {}).get("prefix", ""), message)
        try:
            await self._patch_finalizers(run, remove=seen.RUN_FINALIZER)
        except errors.ClusterError as failure:
            self._witness.failed(about, failure)
        return RETRY

    async def _orphans(self, uid: str) -> float | None:
        """A run is gone; pods that it left behind held are let go (the garbage collector deletes them)."""
        try:
            for pod in self._pods(uid):
                owner = await self._cluster.get(
                    RUNS, pod["metadata"]["ownerReferences"][0]["name"], pod["metadata"]["namespace"]
                )
                if owner is not None and owner["metadata"]["uid"] == uid:
                    return RETRY  # not gone: our store of runs has yet to hear of it
                await self._cluster.delete(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
                await self._patch(PODS, self._stores.pods, pod, remove=seen.POD_FINALIZER)
        except errors.ClusterError as error:
            _log.warning("pods of the gone run %s could not be let go: %s", uid, error)
            return RETRY
        return None

    def _run(self, uid: str) -> Object | None:
        return next(iter(self._stores.runs.indexed(uid)), None)

    def _pods(self, uid: str) -> list[Object]:
        return self._stores.pods.indexed(uid)

    def _forget(self, uid: str) -> None:
        self._jobs.forget(uid)
        self._progress.pop(uid, None)
        self._refusals.pop(uid, None)
        self._witness.forgotten(uid)


def _attempt(pod: Object) -> int:
    return int(pod["metadata"]["labels"].get(seen.LABEL_ATTEMPT, 0))


def _pools(store: Store) -> dict[str, GPUPoolSpec]:
    """Return the pools that can be read; one that cannot is left out with a log line, for others must go on."""
    found = {}
    for pool in store:
        try:
            found[pool["metadata"]["name"]] = GPUPoolSpec.model_validate(pool["spec"])
        except ValidationError as error:
            _log.warning("GPUPool %s cannot be read: %s", pool["metadata"]["name"], error.errors()[0]["msg"])
    return found
