"""When each pod was first seen, by one watch for all: the same clock and the same path for both contenders."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from localcluster.api import Api


@dataclass(frozen=True, slots=True)
class Seen:
    """A pod, and the monotonic seconds at which the watch told of it."""

    name: str
    at: float


class PodWatch:
    """Pods of one namespace by their owner's UID, in the order of creation. Use it as an async context manager."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self._more = asyncio.Condition()
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
            async for event in self._api.watch(self._path, version, seconds=600):
                if event["type"] == "ADDED":
                    seen = Seen(event["object"]["metadata"]["name"], time.monotonic())
                    async with self._more:
                        for owner in event["object"]["metadata"].get("ownerReferences", ()):
                            self._seen[owner["uid"]].append(seen)
                        self._more.notify_all()
        finally:
            async with self._more:
                self._more.notify_all()

    def newest(self, owner: str) -> Seen:
        """Return the owner's pod that came last."""
        return self._seen[owner][-1]

    def count(self, owner: str) -> int:
        """Return how many pods the owner has had."""
        return len(self._seen[owner])

    async def wait(self, owner: str, number: int, seconds: float) -> Seen | None:
        """Return the owner's *number*-th pod once it is there; None after *seconds* without it.

        Raises RuntimeError if the watch has ended: then nothing can be known.
        """
        assert self._task is not None
        try:
            async with asyncio.timeout(seconds), self._more:
                while len(self._seen[owner]) < number:
                    if self._task.done():
                        raise RuntimeError("the watch of pods has ended")
                    await self._more.wait()
                return self._seen[owner][number - 1]
        except TimeoutError:
            return None
