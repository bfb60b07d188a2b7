"""Carry out a decision: creates and deletes, then the one status write, then the telling.

Every action is idempotent and safe to repeat, for a crash may come between any two of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from lorafinetune.engine.decision import (
    Abandon,
    Action,
    AddFinalizer,
    Announcement,
    CreatePod,
    Decision,
    DeletePod,
    DeleteRun,
    ReadEvents,
    ReleasePod,
    RemoveFinalizer,
    StartJob,
)
from lorafinetune.engine.observation import Observation, Refusal, RunSeen
from lorafinetune.jobs import Jobs
from lorafinetune.kube import errors, pods, seen, status
from lorafinetune.kube.client import PODS, RUNS, Cluster, Resource
from lorafinetune.kube.evidence import EventReader
from lorafinetune.kube.store import Store
from lorafinetune.kube.stores import NamespacedStore, Stores

Object = dict[str, Any]

WORDS_WAIT: Final = 1.0
"""Seconds at most that a status is kept back which says what is waited for, and nothing else that is new."""


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


class Wake(Protocol):
    """Has a run looked at (``Loop.wake``)."""

    def __call__(self, uid: str, after: float = 0.0, *, urgent: bool = False) -> None:
        """In *after* seconds, and before those that are not urgent."""


class Actor:
    """Hands for decisions. What it writes, it teaches the stores at once."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        trainer: pods.Trainer,
        *,
        jobs: Jobs,
        events: EventReader,
        witness: Witness,
        wake: Wake,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._trainer = trainer
        self._jobs = jobs
        self._events = events
        self._witness = witness
        self._wake = wake
        self._clock = clock
        self.refusals: dict[str, Refusal] = {}
        """The last refused create of each run, by UID, until one succeeds."""
        self._words: dict[str, tuple[str, float]] = {}
        """Which words (a decision's reason) of a run's status are kept back, and since when, by UID."""

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a run that is gone."""
        self.refusals.pop(uid, None)
        self._words.pop(uid, None)

    async def act(
        self, run: Object, observation: Observation, decision: Decision, give_way: Callable[[], Awaitable[None]]
    ) -> float | None:
        """Creates and deletes first, then the status, then the telling; letting go comes last of all.

        *give_way* is awaited between the first and the second: other runs' creates go before this one's status.
        Returns None once all is done, or the seconds for which the status is kept back because it is mere words: then
        it is decided anew. What was made is told all the same.
        """
        for action in decision.actions:
            if isinstance(action, AddFinalizer):
                run = await self._patch(RUNS, self._stores.runs, run, add=seen.RUN_FINALIZER) or run
            elif not isinstance(action, RemoveFinalizer | DeleteRun):
                await self._do(action, observation)
        if any(isinstance(action, RemoveFinalizer) for action in decision.actions):
            for announcement in decision.announcements:
                self._witness.announced(run, announcement)
            await self.let_go(run)
            return None
        if any(isinstance(action, DeleteRun) for action in decision.actions):
            await self._delete(run)
            for announcement in decision.announcements:
                self._witness.announced(run, announcement)
            return None
        held = None
        if status.differs(observation.status, decision.status):
            if self._can_wait(observation, decision):
                held = WORDS_WAIT
            else:
                await give_way()
                self._stores.runs.learn(await status.write(self._cluster, run, decision.status))
        if held is None:
            self._words.pop(observation.run.uid, None)
        if held is None or decision.makes_attempt:
            for announcement in decision.announcements:
                self._witness.announced(run, announcement)
        return held

    def _can_wait(self, observation: Observation, decision: Decision) -> bool:
        """Whether what is to be written is only said until the next news, which what was just done will bring.

        "Asking the bucket" is true for a moment, and so is "attempt 1 is made": what its pod's news make of it is
        written at once. A write is dear. If the news take longer, it is written.
        """
        passing = [isinstance(action, AddFinalizer | StartJob | CreatePod) for action in decision.actions]
        if not passing or not all(passing) or not status.only_words(observation.status, decision.status):
            return False
        now = self._clock()
        said, since = self._words.get(observation.run.uid, ("", now))
        if said != decision.reason:
            self._words[observation.run.uid] = (decision.reason, since := now)
        return now - since < WORDS_WAIT

    async def _do(self, action: Action, observation: Observation) -> None:
        about = observation.run
        match action:
            case CreatePod():
                await self._create(action, observation)
            case DeletePod(name, uid):
                await self._cluster.delete(PODS, name, about.namespace, uid=uid)
            case ReleasePod(name, uid):
                await self._release(name, uid, about.namespace)
            case ReadEvents(name, uid):
                self._events.ask(about.namespace, name, uid, about.uid)
            case StartJob(job, steps):
                highest = max([observation.status.attempt or 0, *(pod.attempt for pod in observation.pods)])
                self._jobs.start(job, about, observation.spec, highest, steps)
            case Abandon(message):
                await self._witness.abandoned(about, observation.status.prefix or "", message)
            case AddFinalizer() | RemoveFinalizer() | DeleteRun():
                raise AssertionError("holding comes before, and letting go after everything else")

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
            if found is None or not pods.is_ours(found, about):
                message = f"a pod {name!r} that is not this run's is in the way: delete it"
                raise self._refuse(about, "PodNameTaken", message) from error
            pod = found
        except (errors.Refused, errors.Conflict) as error:  # an admission webhook may say no with any code
            raise self._refuse(about, "CreateRefused", f"the API server refuses the pod: {error}") from error
        self.refusals.pop(about.uid, None)
        self._jobs.drop_artifact(about.uid)
        self._stores.pods.learn(pod)

    def _refuse(self, about: RunSeen, reason: str, message: str) -> errors.Conflict:
        """File a refusal; the pass is repeated at once, and the rules say what it means."""
        self.refusals[about.uid] = Refusal(reason, message, self._clock())
        return errors.Conflict(message)

    async def _delete(self, run: Object) -> None:
        """Delete the resource itself, unless anybody has changed it since it was looked at: then Conflict."""
        metadata = run["metadata"]
        await self._cluster.delete(
            RUNS,
            metadata["name"],
            metadata["namespace"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
        )

    async def _release(self, name: str, uid: str, namespace: str) -> None:
        pod = self._stores.pods.get(name, namespace)
        if pod is None or pod["metadata"]["uid"] != uid:
            return
        await self.release(pod)

    async def release(self, pod: Object) -> None:
        """Take our finalizer off a pod."""
        await self._patch(PODS, self._stores.pods, pod, remove=seen.POD_FINALIZER)

    async def let_go(self, run: Object) -> None:
        """Take our finalizer off a run: the last write of its life."""
        await self._patch(RUNS, self._stores.runs, run, remove=seen.RUN_FINALIZER)

    async def _patch(
        self,
        resource: Resource,
        store: Store | NamespacedStore,
        thing: Object,
        *,
        add: str | None = None,
        remove: str | None = None,
    ) -> Object | None:
        """Add or remove one finalizer, leaving the others as they were when *thing* was read; None if it is gone."""
        metadata = thing["metadata"]
        held = list(metadata.get("finalizers", ()))
        wanted = [one for one in held if one != remove] + ([add] if add is not None and add not in held else [])
        if wanted == held:
            return thing
        operations: list[Object] = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": "/metadata/finalizers", "value": wanted},
        ]
        answer = await self._cluster.json_patch(resource, metadata["name"], metadata.get("namespace"), operations)
        if answer is not None and store.learn(answer) is not None:
            # The watch will bring nothing new of it: what the write makes possible is looked at now.
            uid = metadata["labels"][seen.LABEL_RUN_UID] if resource == PODS else metadata["uid"]
            self._wake(uid, urgent=add is not None)  # a run that has just been taken in has no pod yet
        return answer
