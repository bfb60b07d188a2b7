"""One run on a real API server, with everything else played: its kubelet, its user, and a bucket that says yes.

Pods are hollow: nobody runs them, and the kubelet here writes what a kubelet would write. What is real is what is
tested: the API server with the definitions, and the operator's loop, engine and client.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from lorafinetune.api.status import ArtifactStatus
from lorafinetune.engine.decision import Announcement, Job
from lorafinetune.engine.observation import ArtifactChecked, RunSeen, StorageChecked, StorageSeen, Tidied
from lorafinetune.jobs import Jobs
from lorafinetune.kube import errors, pods, seen
from lorafinetune.kube.client import PODS, RUNS, Cluster, Object
from lorafinetune.kube.store import Change, Store
from lorafinetune.kube.stores import NamespacedStore, Stores
from lorafinetune.loop import Loop
from lorafinetune.places import filed
from lorafinetune.telemetry import Metrics

STEPS = 20
NODE = "hollow"
SECONDS = 2.0
"""By so much the world's clock goes on in each turn, besides its own pace."""
POOL = {
    "metadata": {"name": "spot", "uid": "pool", "resourceVersion": "1"},
    "spec": {"capacityType": "Spot", "nodeSelector": {"pool": "hollow"}, "pricePerHour": "0.30", "default": True},
}
READY = {
    "metadata": {"name": NODE, "uid": "node", "resourceVersion": "1"},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}
OVER = ("Succeeded", "Failed")
_names = itertools.count(1)


@dataclass
class Bucket:
    """What is in the bucket, whoever asks. *away* makes every answer a no."""

    marked: bool = False
    artifact: bool = False
    away: bool = False
    done: list[Job] = field(default_factory=list)


class Answers:
    """Stands for :class:`Jobs`: answers at once, and remembers nothing that a restarted operator would not."""

    def __init__(self, bucket: Bucket, wake: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._wake = wake
        self._clock = clock
        self._seen: dict[str, StorageSeen] = {}

    def seen(self, uid: str) -> StorageSeen:
        return self._seen.get(uid, StorageSeen())

    def forget(self, uid: str) -> None:
        self._seen.pop(uid, None)

    def drop_artifact(self, uid: str) -> None:
        self._seen[uid] = replace(self.seen(uid), artifact=None)

    async def secret_problem(self, *_about: Any) -> None:
        return None

    async def close(self) -> None:
        return None

    def start(self, job: Job, run: Any, _spec: Any, _attempt: int, *_more: Any) -> None:
        now, bucket = self._clock(), self._bucket
        no, reason = bucket.away, "StorageUnreachable" if bucket.away else "Ready"
        tidied = Tidied(not no, reason, "the bucket's answer", now)
        if not no:
            bucket.done.append(job)
        match job:
            case Job.CHECK:
                answer: dict[str, Any] = {"checked": StorageChecked(not no, reason, "the bucket's answer", now)}
            case Job.READ:
                answer = {"read": now}
            case Job.VERIFY:
                found = ArtifactStatus(uri="s3://loras/a/", file="x", sha256="0" * 64, size=1)
                found_or_not = found if bucket.artifact and not no else None
                ok = found_or_not is not None
                answer = {"artifact": ArtifactChecked(ok, not no, "ArtifactMissing", "it", now, STEPS, found_or_not)}
            case Job.MARK:
                bucket.marked = bucket.marked or not no
                answer = {"marked": tidied}
            case Job.REBUILD:
                answer = {"rebuilt": tidied}
            case Job.PRUNE:
                answer = {"pruned": tidied}
            case Job.BURY:
                answer = {"buried": tidied}
            case Job.COLLECT:
                bucket.marked = bucket.marked and no
                answer = {"collected": tidied}
        self._seen[run.uid] = replace(self.seen(run.uid), **answer)
        self._wake(run.uid)


class Silent:
    """A witness that keeps what it is told."""

    def __init__(self) -> None:
        self.announcements: list[Announcement] = []
        self.left: list[str] = []

    def decided(self, *_about: Any) -> None:
        return None

    def failed(self, *_about: Any) -> None:
        return None

    def forgotten(self, _uid: str) -> None:
        return None

    def announced(self, _run: Object, announcement: Announcement) -> None:
        self.announcements.append(announcement)

    async def abandoned(self, _run: Any, prefix: str, _message: str) -> None:
        self.left.append(prefix)


class World:
    """A run and all that is around it but the operator. *user* is asked in each turn what it does."""

    def __init__(self, api: Cluster, namespace: str, **spec: Any) -> None:
        self.api = api
        self.namespace = namespace
        self.name = f"timber-{next(_names)}"
        self.spec = spec
        self.bucket = Bucket()
        self.ahead = 0.0
        self.turns = 0
        self.highest = 0
        self.touched = False
        """Whether kubelet or people did something in this turn."""
        self.run: Object | None = None
        self.pods: list[Object] = []
        self.history: list[dict[str, Any]] = []
        """Attempts as the status last had them."""
        self.last: dict[str, Any] = {}
        """The status as last seen."""
        self.created = False
        self.deletes = True
        """Whether its user deletes it after its success."""
        self.uid = ""

    def clock(self) -> float:
        return time.time() + self.ahead

    @property
    def gone(self) -> bool:
        return self.created and self.run is None

    async def apply(self) -> None:
        """Create the run."""
        body = {
            "apiVersion": "lorafinetune.io/v1alpha1",
            "kind": "LoRAFineTune",
            "metadata": {"name": self.name},
            "spec": {
                "baseModel": {"source": "hf://stabilityai/stable-diffusion-xl-base-1.0"},
                "dataset": {"source": "s3://data/timber/"},
                "training": {"steps": STEPS},
                "storage": {"uri": "s3://loras/"},
                **self.spec,
            },
        }
        self.run = await self.api.create(RUNS, body, self.namespace)
        self.uid, self.created = self.run["metadata"]["uid"], True

    async def look(self) -> None:
        """See run and pods as they are, and hold them to the laws."""
        self.run = await self.api.get(RUNS, self.name, self.namespace)
        if self.run is not None and self.run["metadata"]["uid"] != self.uid:
            self.run = None
        # By name, for a list has to wait until the API server's cache is known to be fresh.
        about = RunSeen(self.namespace, self.name, self.uid, 1, 0.0)
        numbers = (int(pod["metadata"]["labels"][seen.LABEL_ATTEMPT]) for pod in self.pods)
        self.highest = max(self.highest, *numbers, 0)
        names = [pods.pod_name(about, number) for number in range(1, self.highest + 2)]
        found = await asyncio.gather(*(self.api.get(PODS, name, self.namespace) for name in names))
        self.pods = [pod for pod in found if pod is not None]
        alive = [pod["metadata"]["name"] for pod in self.pods if not over(pod)]
        assert len(alive) <= 1, f"two attempts at once: {alive}"
        if self.run is not None:
            told = self.run.get("status") or {}
            step, before = told.get("step") or 0, self.last.get("step") or 0
            assert step >= before, "the step went down"
            self.last = told
            self.history = told.get("attempts") or self.history

    async def turn(self) -> None:
        """Let the kubelet do what it has to do with each pod, and time go on."""
        self.turns += 1
        self.ahead += SECONDS
        self.touched = False
        for pod in self.pods:
            deleting, phase = "deletionTimestamp" in pod["metadata"], pod["status"].get("phase")
            if over(pod):
                if deleting and pod["spec"].get("nodeName"):
                    self.touched = True
                    await self.api.delete(PODS, pod["metadata"]["name"], self.namespace, grace_seconds=0)
            elif deleting:
                await self.end(pod, 75)
            elif not pod["spec"].get("nodeName"):
                if not pod["spec"].get("schedulingGates"):
                    await self.bind(pod)
            elif phase == "Pending":
                await self.write(pod, "Running", {"running": {"startedAt": self.stamp()}})

    def stamp(self) -> str:
        return datetime.datetime.fromtimestamp(self.clock(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def bind(self, pod: Object) -> None:
        self.touched = True
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self.api._call("POST", PODS.path(self.namespace, name, "binding"), body=body)

    async def end(self, pod: Object, exit_code: int) -> None:
        phase = "Succeeded" if exit_code == 0 else "Failed"
        at = {"startedAt": self.stamp(), "finishedAt": self.stamp()}
        await self.write(pod, phase, {"terminated": {"exitCode": exit_code, "reason": "Error", **at}})

    async def write(self, pod: Object, phase: str, state: Object) -> None:
        self.touched = True
        metadata = pod["metadata"]
        about = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": metadata["name"], "namespace": self.namespace, "uid": metadata["uid"]},
            "status": {"phase": phase, "containerStatuses": [about]},
        }
        try:
            await self.api.apply(PODS, body, manager="hollow-kubelet", subresource="status")
        except (errors.NotFound, errors.Conflict):
            return  # it is gone

    def running(self, attempt: int) -> Object | None:
        """Return the pod of that attempt, if it runs and nobody has asked it to end."""
        for pod in self.pods:
            if pod["metadata"]["labels"][seen.LABEL_ATTEMPT] == str(attempt) and not over(pod):
                ready = pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
                return pod if ready else None
        return None

    async def condition(self, pod: Object, condition: Object) -> None:
        """Write a condition on a pod, as another controller does."""
        self.touched = True
        metadata = pod["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": metadata["name"], "namespace": self.namespace, "uid": metadata["uid"]},
            "status": {"conditions": [{**condition, "lastTransitionTime": self.stamp()}]},
        }
        await self.api.apply(PODS, body, manager="another-controller", subresource="status")

    async def annotate(self, pod: Object, name: str, value: str) -> None:
        self.touched = True
        annotations = pod["metadata"].get("annotations", {}) | {name: value}
        patch = [{"op": "add", "path": "/metadata/annotations", "value": annotations}]
        await self.api.json_patch(PODS, pod["metadata"]["name"], self.namespace, patch)

    # What people and clouds do

    async def evict(self, pod: Object) -> None:
        """Evict through the real API, which leaves its mark on the pod."""
        self.touched = True
        name = pod["metadata"]["name"]
        about = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
        await self.api._call("POST", PODS.path(self.namespace, name, "eviction"), body=body)

    async def suspend(self, on: bool) -> None:
        self.touched = True
        operations = [{"op": "add", "path": "/spec/suspend", "value": on}]
        await self.api.json_patch(RUNS, self.name, self.namespace, operations)

    async def delete(self) -> None:
        self.touched = True
        await self.api.delete(RUNS, self.name, self.namespace, uid=self.uid)


class Operator:
    """One process's life: stores and loop, made from what is there. Killed: make another."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        self.world = world
        self.cluster = cluster
        self.witness = Silent()
        self.pods = Store(index=filed)
        self.runs = Store(index=lambda run: [run["metadata"]["uid"]])
        nodes, pools = Store(), Store()
        nodes.take("ADDED", READY)
        pools.take("ADDED", POOL)
        stores = Stores(self.runs, NamespacedStore({None: self.pods}), nodes, pools)
        self.loop = Loop(
            cluster,
            stores,
            pods.Trainer(image="trainer"),
            witness=cast(Any, self.witness),
            metrics=Metrics(),
            make_jobs=lambda wake: cast(Jobs, Answers(world.bucket, wake, world.clock)),
            clock=world.clock,
            collect_timeout=900.0,
        )
        self.hear()
        self.loop.begin()

    def hear(self) -> None:
        """Take in what the world has last seen, as watches would bring it."""
        for change in self._replace(self.runs, [self.world.run] if self.world.run is not None else []):
            self.loop.run_changed(change)
        for change in self._replace(self.pods, self.world.pods):
            self.loop.pod_changed(change)

    def _replace(self, store: Store, things: list[Object]) -> list[Change]:
        newest = max((int(thing["metadata"]["resourceVersion"]) for thing in [*store, *things]), default=0)
        return store.replace(things, str(newest))


def over(pod: Object) -> bool:
    """Whether the pod's trainer is known to have ended, or can never begin."""
    ended = pod["status"].get("phase") in OVER
    return ended or ("deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName"))
