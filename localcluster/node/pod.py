"""The life of one pod on a node: admission, volumes, containers, stop, last status, delete."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from typing import Any

from localcluster.api import ApiError, unreachable
from localcluster.node import admission, podstatus
from localcluster.node.container import Container
from localcluster.node.context import NodeContext
from localcluster.node.podstatus import FAILED, PENDING, RUNNING, TERMINAL, timestamp
from localcluster.node.statuswriter import StatusWriter
from localcluster.node.volumes import VolumeError, Volumes

Json = dict[str, Any]
log = logging.getLogger("localcluster.node.pod")
RETRY_FIRST, RETRY_LAST = 0.5, 10.0
REFRESH_SECONDS, REFRESH_LEAST = 30.0, 0.2
STOP_LOOK = 0.2
KILL_WAIT = 15.0
ADDRESS = "127.0.0.1"


async def any_of(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Wait until one of the events is set, or the time is over."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


class Pod:
    """One pod, by UID. `run` is its whole life; `update` and `vanish` tell what happens to its object."""

    def __init__(self, context: NodeContext, pod: Json) -> None:
        self.context = context
        self.object = pod
        self.meta = pod["metadata"]
        self.uid: str = self.meta["uid"]
        self.base = f"/api/v1/namespaces/{self.meta['namespace']}"
        self.path = f"{self.base}/pods/{self.meta['name']}"
        self.directory = context.directory / "pods" / self.uid
        self.logs = context.directory / "logs" / f"{self.meta['namespace']}_{self.meta['name']}_{self.uid}"
        self.vanished, self.deleted, self.stop, self.over, self.mounted = (asyncio.Event() for _ in range(5))
        self.stop_deadline = 0.0
        status = pod.get("status", {})
        self.phase: str = status.get("phase", PENDING)
        self.reason = self.message = ""
        self.own_conditions: list[Json] = []
        self.started = time.time()
        self.conditions: list[Json] = status.get("conditions") or []
        self.writer = StatusWriter(context.api, self.path, self.uid)
        self.volumes = Volumes(
            pod, self.directory / "volumes", self._fetch, self._request_token,
            capacity=context.config.capacity, refresh_fraction=context.config.token_refresh_fraction,
        )  # fmt: skip
        self.init = [self._container(spec) for spec in pod["spec"].get("initContainers") or []]
        self.containers = [self._container(spec) for spec in pod["spec"]["containers"]]
        for container in self.containers if self.init else []:
            container.status["state"] = podstatus.waiting("PodInitializing")

    def _container(self, spec: Json) -> Container:
        return Container(
            self.context, self.object, spec, directory=self.directory / "containers" / spec["name"],
            logs=self.logs / spec["name"], volumes=self.volumes, changed=self.show,
        )  # fmt: skip

    async def _fetch(self, kind: str, name: str) -> Json | None:
        return await self.context.fetch(self.meta["namespace"], kind, name)

    async def _request_token(self, spec: Json) -> Json:
        account = self.object["spec"].get("serviceAccountName", "default")
        bound = {"apiVersion": "v1", "kind": "Pod", "name": self.meta["name"], "uid": self.uid}
        request: Json = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        request["spec"] = {**spec, "boundObjectRef": bound}
        answer = await self.context.api.create(f"{self.base}/serviceaccounts/{account}/token", request)
        return dict(answer["status"])

    @property
    def policy(self) -> str:
        """The restart policy."""
        return str(self.object["spec"].get("restartPolicy", "Always"))

    @property
    def grace(self) -> float:
        """The pod's termination grace period in seconds."""
        return float(self.object["spec"].get("terminationGracePeriodSeconds", 30))

    @property
    def gpus_held(self) -> int:
        """How many GPUs are not free while this pod is here."""
        return 0 if self.over.is_set() or self.phase in TERMINAL else admission.gpus(self.object)

    def update(self, pod: Json) -> None:
        """Take the object's newest state: a deletion stops the pod, a later one with less grace stops it sooner."""
        self.object = self.volumes.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            grace = pod["metadata"].get("deletionGracePeriodSeconds")
            self.deleted.set()
            self.order_stop(self.grace if grace is None else float(grace))

    def vanish(self) -> None:
        """Take note that the object is gone: what still runs ends, with the pod's own grace."""
        self.vanished.set()
        self.order_stop(self.grace)

    def order_stop(self, grace: float, *, reason: str = "", message: str = "", disruption: bool = False) -> None:
        """Stop the pod within `grace` seconds; a second order can only make it sooner.

        With a reason the pod ends Failed, whatever its containers say; `disruption`: with the kubelet's condition.
        """
        deadline = time.monotonic() + max(grace, 1.0)
        self.stop_deadline = min(self.stop_deadline, deadline) if self.stop.is_set() else deadline
        if not self.stop.is_set():
            self.reason, self.message = reason, message
            if disruption:
                self.own_conditions = [podstatus.disruption_condition(message, timestamp(time.time()))]
            self.stop.set()
            if disruption and self.phase not in TERMINAL:
                self.show()

    async def run(self) -> None:
        """Live: from admission to the end of the object; its files go with it, its logs stay."""
        writing = asyncio.create_task(self.writer.run())
        try:
            if self.phase not in TERMINAL:
                await self._live_or_fail()
            self.over.set()
            await any_of(self.deleted, self.vanished)
            flush = asyncio.create_task(self.writer.flush())
            gone = asyncio.create_task(self.vanished.wait())
            await asyncio.wait({flush, gone}, return_when=asyncio.FIRST_COMPLETED)
            flush.cancel()
            await self._delete()
            await gone
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def _live_or_fail(self) -> None:
        """Live; what this node cannot cope with fails the pod with a reason, and harms no other."""
        try:
            await self._live()
        except Exception as error:
            log.exception("pod %s", self.path)
            self.phase = FAILED
            self.reason, self.message = "UnexpectedAdmissionError", f"{type(error).__name__}: {error}"[:1000]
            self.writer.write(self._status(containers=False))

    async def _live(self) -> None:
        config = self.context.config
        refusal = admission.refusal(
            self.object, labels=config.labels, capacity=config.capacity,
            gpus_in_use=self.context.gpus_in_use(self.uid), shutting_down=self.context.shutting_down.is_set(),
        )  # fmt: skip
        if refusal and not self.deleted.is_set():
            self.reason, self.message = refusal
            self.phase = FAILED
            self.context.recorder.event(self.object, "Warning", *refusal)
            self.writer.write(self._status(containers=False))
        elif self._ran_before():
            self._end_lost()
        else:
            await self._run_containers()

    async def _run_containers(self) -> None:
        work = asyncio.create_task(self._work())
        refresh = asyncio.create_task(self._refresh_volumes())
        order = asyncio.create_task(self.stop.wait())
        deadline = self.object["spec"].get("activeDeadlineSeconds")
        await asyncio.wait({work, order}, return_when=asyncio.FIRST_COMPLETED, timeout=deadline)
        if not work.done() and not order.done():
            message = "Pod was active on the node longer than the specified deadline"
            self.order_stop(self.grace, reason="DeadlineExceeded", message=message)
        if work.done() and not work.cancelled() and (error := work.exception()):
            log.error("pod %s", self.path, exc_info=error)
            self.order_stop(0, reason="UnexpectedNodeError", message=f"{type(error).__name__}: {error}"[:1000])
        await self._stop(work)
        for task in (refresh, order):
            task.cancel()
        await asyncio.gather(refresh, order, return_exceptions=True)
        self._finish()

    def _ran_before(self) -> bool:
        """Whether an earlier boot of this machine ran the pod: its containers are lost."""
        statuses = self.object.get("status", {}).get("containerStatuses") or []
        return any("running" in status.get("state", {}) for status in statuses)

    def _end_lost(self) -> None:
        """End a pod whose containers an earlier boot took with it."""
        known = {status["name"]: status for status in self.object["status"]["containerStatuses"]}
        for container in self.containers:
            old = known.get(container.name, container.status)
            container.status = podstatus.with_all_ended([old])[0]
        self.phase = podstatus.final_phase([container.status for container in self.containers])
        self.writer.write(self._status())

    async def _work(self) -> None:
        """Set up volumes, run init containers one after the other, then all containers; returns when all have ended."""
        self.show()
        delay = RETRY_FIRST
        while not await self._set_up_volumes():
            await any_of(self.stop, seconds=delay)
            delay = min(delay * 2, RETRY_LAST)
        self.mounted.set()
        for container in self.init:
            await container.run("Never" if self.policy == "Never" else "OnFailure")
            if self.stop.is_set() or podstatus.exit_code(container.status) != 0:
                return
        if not self.stop.is_set():
            await asyncio.gather(*(container.run(self.policy) for container in self.containers))

    async def _set_up_volumes(self) -> bool:
        """Try once; what is missing is told in an event. True where there is nothing more to wait for."""
        try:
            await self.volumes.render()
        except (VolumeError, ApiError) as error:  # the node authorizer, too, learns of a binding a moment after us
            self.context.recorder.event(self.object, "Warning", "FailedMount", str(error))
            return self.stop.is_set()
        except Exception as error:
            if not unreachable(error):
                raise
            return self.stop.is_set()
        return True

    async def _refresh_volumes(self) -> None:
        """Keep tokens, Secrets and ConfigMaps in the pod's files fresh."""
        await self.mounted.wait()
        while True:
            due = self.volumes.seconds_to_refresh()
            await asyncio.sleep(REFRESH_SECONDS if due is None else min(REFRESH_SECONDS, max(due, REFRESH_LEAST)))
            with contextlib.suppress(VolumeError, ApiError, OSError, TimeoutError):
                await self.volumes.render()

    async def _stop(self, work: asyncio.Task[None]) -> None:
        """SIGTERM to the main processes, SIGKILL to all when the grace is over; then nothing of the pod runs."""
        every = [*self.init, *self.containers]
        for container in every:
            if container.running:
                self.context.recorder.event(
                    self.object, "Normal", "Killing", f"Stopping container {container.name}", container.name
                )
            container.terminate()
        while not work.done() and (left := self.stop_deadline - time.monotonic()) > 0:
            await asyncio.wait({work}, timeout=min(left, STOP_LOOK))
        for container in every:
            container.kill()
        await asyncio.wait({work}, timeout=KILL_WAIT)
        if not work.done():
            log.error("pod %s does not end after SIGKILL", self.path)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _finish(self) -> None:
        """Decide the last phase and have the last status written."""
        statuses = [container.status for container in self.containers]
        if self.stop.is_set():
            if any(s["lastState"] or "terminated" in s["state"] for s in statuses):
                for container, status in zip(self.containers, podstatus.with_all_ended(statuses), strict=True):
                    container.status = status
            statuses = [container.status for container in self.containers]
            self.phase = FAILED if self.reason else podstatus.final_phase(statuses)
        else:
            found = podstatus.phase(self.policy, [container.status for container in self.init], statuses)
            self.phase = found if found in TERMINAL else FAILED
        self.writer.write(self._status())

    async def _delete(self) -> None:
        """Delete the object with grace 0; where finalizers hold it, it stays Terminating with its last status."""
        delay = RETRY_FIRST
        while not self.vanished.is_set():
            try:
                await self.context.api.delete(self.path, grace=0, uid=self.uid)
                return
            except ApiError as error:
                if error.status in (404, 409):
                    return
                log.warning("pod %s could not be deleted: %s", self.path, error)
            except Exception as error:
                if not unreachable(error):
                    raise
            await any_of(self.vanished, seconds=delay)
            delay = min(delay * 2, RETRY_LAST)

    def show(self) -> None:
        """Have the present state written. The last one is not shown here but by `_finish`, phase and all, at once."""
        init, containers = [c.status for c in self.init], [c.status for c in self.containers]
        found = podstatus.phase(self.policy, init, containers)
        if self.phase not in TERMINAL and found not in TERMINAL:
            self.phase = RUNNING if self.phase == RUNNING else found
            self.writer.write(self._status())

    def _status(self, *, containers: bool = True) -> Json:
        now = timestamp(time.time())
        init, normal = [c.status for c in self.init], [c.status for c in self.containers]
        status: Json = {"phase": self.phase, "startTime": timestamp(self.started)}
        if self.reason and self.phase in TERMINAL:
            status |= {"reason": self.reason, "message": self.message}
        if not containers:
            return status
        self.conditions = podstatus.conditions(self.phase, init, normal, self.conditions, now)
        status |= {
            "conditions": [*self.conditions, *self.own_conditions],
            "hostIP": ADDRESS, "hostIPs": [{"ip": ADDRESS}], "podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}],
            "containerStatuses": [dict(s) for s in normal],
        }  # fmt: skip
        if init:
            status["initContainerStatuses"] = [dict(s) for s in init]
        return status
