"""Faults on demand, each with the signs that the cloud which a node plays shows: preempt, kill, cut, heal, drain.

They act as clouds and their controllers do: on the machine (signals, links) and on the Node and its pods through the
API, never by telling the operator or a trainer.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import json
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from localcluster import clouds
from localcluster.api import STRATEGIC, Api, ApiError, Json, unreachable
from localcluster.clouds import Reclaim
from localcluster.fleet import GONE, Fleet, Machine

log = logging.getLogger("localcluster.faults")
T = TypeVar("T")
EVICTION_RETRY = 0.5
INSIST_SECONDS = 600.0
SIGNS_SECONDS = 5.0
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
TERMINAL = ("Succeeded", "Failed")


class Faults:
    """Carries out faults. What takes time goes on by itself; `wait` waits for its end."""

    def __init__(self, fleet: Fleet, api: Api) -> None:
        self.fleet = fleet
        self.api = api
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def under_way(self) -> list[str]:
        """Name the faults that still go on."""
        return [name for name, task in self._tasks.items() if not task.done()]

    async def close(self) -> None:
        """Give up what still goes on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _begin(self, name: str, work: Coroutine[Any, Any, None], wait: bool) -> Json:
        task = asyncio.create_task(work)
        self._tasks = {n: t for n, t in self._tasks.items() if not t.done()} | {name: task}
        task.add_done_callback(_log_failure)
        if wait:
            await asyncio.shield(task)
        return {}

    async def preempt(
        self, node: str, notice: float | None = None, replace_after: float | None = None, wait: bool = False
    ) -> Json:
        """Reclaim a node with notice (seconds; the cloud's own where None), as its cloud shows it.

        `replace_after` seconds after the machine's end a node of the same pool joins. `wait`: until the end of it all.
        """
        machine = self.fleet.running(node)
        if f"preempt {node}" in self.under_way():
            raise ValueError(f"node {node!r} is being reclaimed already")
        reclaim = clouds.cloud_of(machine.spec).reclaim
        seconds = reclaim.notice if notice is None else float(notice)
        shown = asyncio.Event()
        work = self._preempt(machine, reclaim, seconds, replace_after, shown=shown)
        answer = await self._begin(f"preempt {node}", work, wait)
        with contextlib.suppress(TimeoutError):  # they may come late: the API server may be away
            await asyncio.wait_for(shown.wait(), SIGNS_SECONDS)
        return answer

    async def _preempt(
        self, machine: Machine, reclaim: Reclaim, notice: float, replace_after: float | None, *, shown: asyncio.Event
    ) -> None:
        name = machine.spec.name
        deadline = time.time() + notice
        log.info("%s is reclaimed with %g s notice", name, notice)
        if reclaim.graceful_shutdown:
            (machine.directory / "power-off.json").write_text(json.dumps({"seconds": notice}))
            os.kill(machine.process.pid, signal.SIGUSR1)

        async def announce() -> None:
            await _insist(lambda: self._show_signs(name, reclaim, deadline))
            shown.set()
            if reclaim.evict:
                await self._evict_all(name, deadline, respect=reclaim.honours_do_not_disrupt)

        # The machine ends on time, whether or not the API server can be told so.
        announcing = asyncio.create_task(announce())
        announcing.add_done_callback(_log_failure)
        try:
            await asyncio.wait({announcing}, timeout=max(0.0, deadline - time.time()))
            drained = reclaim.ends_when_drained and announcing.done() and not announcing.exception()
            await asyncio.sleep(0.0 if drained else max(0.0, deadline - time.time()))
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)
        await self._end(name, delete=reclaim.delete_after, replace_after=replace_after)

    async def _show_signs(self, name: str, reclaim: Reclaim, deadline: float) -> None:
        """Set the marks by which the cloud announces the end of a machine."""
        path = f"/api/v1/nodes/{name}"
        when = email.utils.format_datetime(datetime.datetime.fromtimestamp(deadline, datetime.UTC), usegmt=True)
        if reclaim.event:
            await self._node_event(name, *reclaim.event)
        if reclaim.conditions:
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            conditions = [
                {"type": kind, "status": "True", "reason": reason, "message": message.format(deadline=when),
                 "lastTransitionTime": now, "lastHeartbeatTime": now}
                for kind, reason, message in reclaim.conditions
            ]  # fmt: skip
            await self.api.patch(f"{path}/status", {"status": {"conditions": conditions}}, STRATEGIC)
        if reclaim.delete_first:
            await self.api.delete(path)
        if reclaim.cordon:
            await self.api.patch(path, {"spec": {"unschedulable": True}})
        await self.fleet.taint(name, reclaim.taints)

    async def _node_event(self, name: str, reason: str, message: str) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self.api.create("/api/v1/namespaces/default/events", {
            "metadata": {"generateName": f"{name}.", "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": name, "uid": name},
            "reason": reason, "message": message, "type": "Warning", "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "karpenter"},
        })  # fmt: skip

    async def _pods(self, name: str) -> list[Json]:
        found = await self.api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={name}")
        return list(found["items"])

    async def _evict_all(self, name: str, deadline: float, *, respect: bool = False) -> None:
        """Evict every pod of a node that still runs, until none does or the deadline.

        A refusal (a disruption budget) is tried again. `respect`: pods that say do-not-disrupt are left alone.
        """
        while time.time() < deadline:
            running = [
                pod for pod in await _insist(lambda: self._pods(name))
                if pod["status"].get("phase") not in TERMINAL
                and not any(o["kind"] == "DaemonSet" for o in pod["metadata"].get("ownerReferences", []))
            ]  # fmt: skip
            if not running:
                return
            waiting = [
                pod for pod in running
                if not pod["metadata"].get("deletionTimestamp")
                and not (respect and pod["metadata"].get("annotations", {}).get(DO_NOT_DISRUPT) == "true")
            ]  # fmt: skip
            await asyncio.gather(*(self._evict(pod) for pod in waiting))
            await asyncio.sleep(EVICTION_RETRY)

    async def _evict(self, pod: Json) -> bool:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction"
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
        }
        try:
            await self.api.create(path, body)
        except ApiError as error:
            if error.status in (404, 409):
                return True
            log.info("%s/%s was not evicted: %s", meta["namespace"], meta["name"], error)
            return False
        except Exception as error:
            if not unreachable(error):
                raise
            return False
        return True

    async def _end(self, name: str, *, delete: bool, replace_after: float | None) -> None:
        replacement = self.fleet.replacement(name)
        await self.fleet.power_off(name)
        log.info("the machine of %s has ended", name)
        if delete:
            await _insist(lambda: self.fleet.delete_node(name))
        else:
            await _insist(lambda: self.fleet.taint(name, (clouds.SHUTDOWN_TAINT,)))
        if replace_after is not None:
            await asyncio.sleep(replace_after)
            if replacement.name == name:
                await self.fleet.restart(name)
            else:
                await self.fleet.add(replacement)
            log.info("%s has joined in place of %s", replacement.name, name)

    async def kill(
        self,
        node: str,
        delete_node_after: float | None = None,
        replace_after: float | None = None,
        wait: bool = False,
    ) -> Json:
        """End a machine without notice: everything on it is gone at once, its Node turns NotReady by its Lease.

        `delete_node_after` seconds later the cloud's controller removes the Node object (None: it stays).
        """
        self.fleet.running(node)
        replacement = self.fleet.replacement(node)
        await self.fleet.power_off(node)
        log.info("the machine of %s was killed", node)

        async def after() -> None:
            begin = time.monotonic()
            steps = [(delete_node_after, "delete"), (replace_after, "replace")]
            for seconds, step in sorted((s, what) for s, what in steps if s is not None):
                await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
                if step == "delete":
                    await _insist(lambda: self.fleet.delete_node(node))
                elif replacement.name == node:
                    await self.fleet.restart(node)
                else:
                    await self.fleet.add(replacement)

        return await self._begin(f"kill {node}", after(), wait)

    async def cut(self, node: str, pods: bool = False) -> Json:
        """Lose a node silently: its agent and the API server no longer reach each other, its pods run on.

        `pods`: cut its pods' routes too (the addresses that the node was added with as `routes`).
        """
        machine = self.fleet.running(node)
        machine.to_api.cut()
        machine.to_agent.cut()
        for link in machine.to_routes if pods else ():
            link.cut()
        log.info("%s is cut off", node)
        return {}

    async def heal(self, node: str) -> Json:
        """Bring a node back: a cut one meets what happened meanwhile, an ended one boots again under its name."""
        machine = self.fleet.machine(node)
        if machine.state == GONE:
            await self.fleet.restart(node)
        else:
            for link in machine.links():
                link.heal()
        log.info("%s is back", node)
        return {}

    async def drain(self, node: str, seconds: float = 60.0, wait: bool = True) -> Json:
        """Cordon a node and evict its pods through the eviction API, as `kubectl drain` does; the node stays."""
        self.fleet.running(node)
        await self.api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}})
        return await self._begin(f"drain {node}", self._drain(node, seconds), wait)

    async def _drain(self, node: str, seconds: float) -> None:
        deadline = time.time() + seconds
        evicting = asyncio.create_task(self._evict_all(node, deadline))
        try:
            while True:
                left = [pod for pod in await self._pods(node) if pod["status"].get("phase") not in TERMINAL]
                if not left:
                    return
                if time.time() > deadline:
                    names = ", ".join(f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in left)
                    raise TimeoutError(f"after {seconds:g} s there still run on {node}: {names}")
                await asyncio.sleep(0.2)
        finally:
            evicting.cancel()
            await asyncio.gather(evicting, return_exceptions=True)


async def _insist(action: Callable[[], Awaitable[T]]) -> T:
    """Do it as soon as the API server can be reached, as every controller does. Bounded by INSIST_SECONDS."""
    async with asyncio.timeout(INSIST_SECONDS):
        while True:
            try:
                return await action()
            except Exception as error:
                if not unreachable(error):
                    raise
                log.info("the API server is away: %s", error or type(error).__name__)
            await asyncio.sleep(EVICTION_RETRY)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("a fault ended badly: %s: %s", type(error).__name__, error)
