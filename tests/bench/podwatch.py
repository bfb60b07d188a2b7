"""When each pod was first seen, by one watch for all: the same clock and the same path for both contenders.

It also sees what must never be: two live pods of one owner, or one attempt made twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from localcluster.api import Api

Object = dict[str, Any]

OVER = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Seen:
    """A pod, and the monotonic seconds at which the watch told of it."""

    name: str
    uid: str
    at: float


class Ledger:
    """Pods by their owner's UID, in the order of creation, and every moment at which an owner had one too many."""

    def __init__(self) -> None:
        self._seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self._live: defaultdict[str, set[str]] = defaultdict(set)
        self.duplicates: set[str] = set()
        """Names of pods that were live beside another one of their owner, or made again under their name."""

    def take(self, kind: str, pod: Object, at: float) -> None:
        """Take one watch event (ADDED, MODIFIED or DELETED) that came at *at*."""
        metadata = pod["metadata"]
        over = kind == "DELETED" or pod.get("status", {}).get("phase") in OVER
        for owner in (one["uid"] for one in metadata.get("ownerReferences", ())):
            if kind == "ADDED":
                if any(one.name == metadata["name"] for one in self._seen[owner]):
                    self.duplicates.add(metadata["name"])
                self._seen[owner].append(Seen(metadata["name"], metadata["uid"], at))
            live = self._live[owner]
            live.discard(metadata["uid"]) if over else live.add(metadata["uid"])
            if len(live) > 1:
                self.duplicates.add(metadata["name"])

    def pods(self, owner: str) -> list[Seen]:
        """Return all pods that the owner has had, oldest first."""
        return self._seen.get(owner, [])


class PodWatch:
    """Fills a ledger with the pods of one namespace. Use it as an async context manager."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._ledger = Ledger()
        self._awaited: dict[tuple[str, int], asyncio.Future[None]] = {}
        """Who waits for the how-manieth pod of which owner: a thousand wait at once, and each is woken for its own."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        version = (await self._api.get(self._path))["metadata"]["resourceVersion"]
        self._task = asyncio.create_task(self._follow(version))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, version: str) -> None:
        try:
            while True:  # the server ends a watch at its time; the next one goes on where it ended
                async for event in self._api.watch(self._path, version, seconds=600):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._ledger.take(event["type"], event["object"], time.monotonic())
                    if event["type"] == "ADDED":
                        self._wake(event["object"])
        finally:
            for waiting in self._awaited.values():
                if not waiting.done():
                    waiting.set_exception(RuntimeError("the watch of pods has ended"))

    def _wake(self, pod: Object) -> None:
        for owner in pod["metadata"].get("ownerReferences", ()):
            waiting = self._awaited.get((owner["uid"], self.count(owner["uid"])))
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    @property
    def duplicates(self) -> set[str]:
        """Names of pods of which there was one too many."""
        return self._ledger.duplicates

    def newest(self, owner: str) -> Seen:
        """Return the owner's pod that came last."""
        return self._ledger.pods(owner)[-1]

    def count(self, owner: str) -> int:
        """Return how many pods the owner has had."""
        return len(self._ledger.pods(owner))

    async def wait(self, owner: str, number: int, seconds: float) -> Seen | None:
        """Return the owner's *number*-th pod once it is there; None after *seconds* without it.

        Raises RuntimeError if the watch has ended: then nothing can be known.
        """
        assert self._task is not None
        if self.count(owner) < number:
            if self._task.done():
                raise RuntimeError("the watch of pods has ended")
            waiting = self._awaited[owner, number] = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(seconds):
                    await waiting
            except TimeoutError:
                return None
            finally:
                del self._awaited[owner, number]
        return self._ledger.pods(owner)[number - 1]
