"""Kubernetes events about pods, as a kubelet writes them; best effort, bounded, repeats counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from localcluster.api import Api, ApiError
from localcluster.node.podstatus import timestamp

Json = dict[str, Any]
QUEUE = 1000
REMEMBERED = 500


class Recorder:
    """Takes events without waiting; a task sends them one after the other."""

    def __init__(self, api: Api, node: str) -> None:
        self.api = api
        self.node = node
        self._queue: asyncio.Queue[tuple[Json, str, str, str, str]] = asyncio.Queue(QUEUE)
        self._seen: dict[tuple[str, ...], tuple[str, int]] = {}

    def event(self, pod: Json, kind: str, reason: str, message: str, container: str = "") -> None:
        """Record an event (`Normal` or `Warning`) on a pod; dropped where too many wait."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait((pod["metadata"], kind, reason, message, container))

    async def run(self) -> None:
        """Send what is recorded, for ever."""
        while True:
            meta, kind, reason, message, container = await self._queue.get()
            with contextlib.suppress(ApiError, OSError, TimeoutError):
                await self._send(meta, kind, reason, message, container)

    async def _send(self, meta: Json, kind: str, reason: str, message: str, container: str) -> None:
        path = f"/api/v1/namespaces/{meta['namespace']}/events"
        key = (meta["uid"], container, reason, message)
        now = timestamp(time.time())
        if key in self._seen:
            name, count = self._seen[key]
            await self.api.patch(f"{path}/{name}", {"count": count + 1, "lastTimestamp": now})
            self._seen[key] = (name, count + 1)
            return
        about = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "namespace": meta["namespace"]}
        about |= {"uid": meta["uid"], "resourceVersion": meta.get("resourceVersion", "")}
        if container:
            about["fieldPath"] = f"spec.containers{{{container}}}"
        made = await self.api.create(path, {
            "metadata": {"generateName": f"{meta['name'][:57]}.", "namespace": meta["namespace"]},
            "involvedObject": about, "type": kind, "reason": reason, "message": message[:1024], "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet", "reportingInstance": self.node,
        })  # fmt: skip
        self._seen[key] = (made["metadata"]["name"], 1)
        while len(self._seen) > REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
