"""A node's agent: registers the node, follows the pods bound to it, and lives until its machine ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from localcluster.api import Api, ApiError, unreachable
from localcluster.node.context import NodeContext
from localcluster.node.memory import watch_memory
from localcluster.node.pod import Pod
from localcluster.node.podstatus import TERMINAL
from localcluster.node.recorder import Recorder
from localcluster.node.registration import Registration
from localcluster.node.server import LogServer
from localcluster.nodespec import AgentConfig

Json = dict[str, Any]
log = logging.getLogger("localcluster.node")
RETRY_FIRST, RETRY_LAST = 0.2, 5.0
WATCH_SECONDS = 120
KEPT_LOGS = 100
SHUTDOWN_MESSAGE = "Pod was terminated in response to imminent node shutdown."
USER_SHARE = 0.5
"""The part of a power-off notice that pods get; the rest is for what the system itself runs there (as on GKE)."""


class Agent:
    """One node."""

    def __init__(self, config: AgentConfig, api: Api) -> None:
        self.config = config
        self.context = NodeContext(config, api, Recorder(api, config.name), gpus_in_use=self._gpus_in_use)
        self.registration = Registration(self.context)
        self.server = LogServer(self.context, self._find_pod)
        self.pods: dict[str, Pod] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._logs = Path(config.directory) / "logs"

    def _gpus_in_use(self, uid: str) -> int:
        return sum(pod.gpus_held for pod in self.pods.values() if pod.uid != uid)

    def _find_pod(self, namespace: str, name: str) -> Pod | None:
        found = [p for p in self.pods.values() if p.meta["namespace"] == namespace and p.meta["name"] == name]
        return found[-1] if found else None

    async def run(self) -> None:
        """Live until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._power_off_notice)
        self._logs.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.rmtree, Path(self.config.directory) / "pods", ignore_errors=True)
        await self.server.start()
        await self.registration.register()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.registration.keep_lease())
            group.create_task(self.registration.keep_status())
            group.create_task(self.context.recorder.run())
            group.create_task(watch_memory(lambda: (c for p in self.pods.values() for c in [*p.init, *p.containers])))
            group.create_task(self._follow_pods())

    async def _follow_pods(self) -> None:
        """List and watch, again and again; a list replaces what was known before."""
        path, mine = "/api/v1/pods", f"spec.nodeName={self.config.name}"
        delay = RETRY_FIRST
        while True:
            try:
                listed = await self.context.api.get(path, fieldSelector=mine)
                self._replace(listed["items"])
                version = listed["metadata"]["resourceVersion"]
                delay = RETRY_FIRST
                while True:
                    watch = self.context.api.watch(path, version, seconds=WATCH_SECONDS, fieldSelector=mine)
                    async for event in watch:
                        version = event["object"]["metadata"]["resourceVersion"]
                        self._take(event["type"], event["object"])
            except Exception as error:
                if not unreachable(error) and not isinstance(error, ApiError):
                    raise
                log.warning("watch of pods ended: %s", error or type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_LAST)

    def _replace(self, items: list[Json]) -> None:
        present = {item["metadata"]["uid"] for item in items}
        for uid, pod in list(self.pods.items()):
            if uid not in present:
                pod.vanish()
        for item in items:
            self._take("MODIFIED", item)

    def _take(self, kind: str, item: Json) -> None:
        if kind == "BOOKMARK":
            return
        uid = item["metadata"]["uid"]
        if kind == "DELETED":
            if uid in self.pods:
                self.pods[uid].vanish()
            return
        if uid not in self.pods:
            self._begin(item)
        self.pods[uid].update(item)

    def _begin(self, item: Json) -> None:
        pod = Pod(self.context, item)
        log.info("pod %s/%s (%s) is ours", item["metadata"]["namespace"], item["metadata"]["name"], pod.uid)
        self.pods[pod.uid] = pod
        life = asyncio.create_task(pod.run())
        self._lives[pod.uid] = life
        life.add_done_callback(lambda task: self._end(pod, task))

    def _end(self, pod: Pod, life: asyncio.Task[None]) -> None:
        self.pods.pop(pod.uid, None)
        self._lives.pop(pod.uid, None)
        if not life.cancelled() and (error := life.exception()):
            log.error("pod %s ended badly", pod.path, exc_info=error)
        log.info("pod %s (%s) is no longer here", pod.path, pod.uid)
        living = {other.logs for other in self.pods.values()}
        kept = sorted(set(self._logs.iterdir()) - living, key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT_LOGS]:
            shutil.rmtree(old, ignore_errors=True)

    def _power_off_notice(self) -> None:
        """End all pods before the machine is powered off, as a kubelet with graceful node shutdown does."""
        if self.context.shutting_down.is_set():
            return
        notice = Path(self.config.directory) / "power-off.json"
        seconds = 0.0
        with contextlib.suppress(OSError, ValueError, KeyError):
            seconds = float(json.loads(notice.read_text())["seconds"])
        log.info("power-off in %g s", seconds)
        self.context.shutting_down.set()
        self.registration.look_now()
        for pod in self.pods.values():
            if pod.phase not in TERMINAL:
                grace = min(pod.grace, seconds * USER_SHARE)
                pod.order_stop(grace, reason="Terminated", message=SHUTDOWN_MESSAGE, disruption=True)


async def serve(config: AgentConfig) -> None:
    """Run the agent of one node."""
    begin = time.monotonic()
    async with Api.from_kubeconfig(Path(config.kubeconfig)) as api:
        agent = Agent(config, api)
        log.info("node %s starts (%.2f s)", config.name, time.monotonic() - begin)
        await agent.run()
