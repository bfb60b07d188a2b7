"""The measures themselves, each the same for both contenders: create, interrupt, and wait for the pod that follows."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localcluster.api import STRATEGIC, Api, ApiError
from tests.bench.contenders import NAMESPACE, Contender, interruption
from tests.bench.podwatch import PodWatch
from tests.bench.scrape import Writes

Object = dict[str, Any]

CREATED_LIMIT = 30.0
"""Seconds until a first pod that is not there counts as missing."""
REPLACED_LIMIT = 75.0
"""The same for a replacement: the Job controller takes 40 s for the third by design."""
SETTLED_LIMIT = 30.0
LOOK_SECONDS = 0.2
QUIET_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Owner:
    """A run or Job that was made."""

    name: str
    uid: str


class Bench:
    """One API server with both controllers on it, and a watch of the pods that they make."""

    def __init__(self, api: Api, pods: PodWatch) -> None:
        self._api = api
        self._pods = pods

    async def applied(self, kind: Contender, names: Sequence[str]) -> tuple[list[Owner], list[float | None]]:
        """Create all *names* at once; return them, and the seconds from each one's request to its first pod."""
        pairs = await asyncio.gather(*(self._applied(kind, name) for name in names))
        owners = [owner for owner, _ in pairs]
        await self._settle(kind, [owner for owner, seconds in pairs if seconds is not None])
        return owners, [seconds for _, seconds in pairs]

    async def _applied(self, kind: Contender, name: str) -> tuple[Owner, float | None]:
        begin = time.monotonic()
        made = await self._api.create(kind.collection, kind.body(name))
        owner = Owner(name, made["metadata"]["uid"])
        seen = await self._pods.wait(owner.uid, 1, CREATED_LIMIT)
        return owner, seen.at - begin if seen is not None else None

    async def interrupted(self, kind: Contender, owners: Sequence[Owner]) -> list[float | None]:
        """Interrupt the newest pod of all *owners* at once; return the seconds from each request to the next pod."""
        measured = await asyncio.gather(*(self._interrupted(kind, owner) for owner in owners))
        await self._settle(kind, [one for one, seconds in zip(owners, measured, strict=True) if seconds is not None])
        return measured

    async def _interrupted(self, kind: Contender, owner: Owner) -> float | None:
        number = self._pods.count(owner.uid)
        if not number:
            return None
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{self._pods.newest(owner.uid).name}/status"
        begin = time.monotonic()
        await self._api.patch(path, interruption(kind.container, datetime.datetime.now(datetime.UTC)), STRATEGIC)
        seen = await self._pods.wait(owner.uid, number + 1, REPLACED_LIMIT)
        return seen.at - begin if seen is not None else None

    async def in_a_row(self, kind: Contender, owner: Owner, times: int) -> list[float | None]:
        """Interrupt one owner again and again, each time once its replacement is written down.

        What follows one that did not happen is missing too: a late pod must not pass for the next one's replacement.
        """
        measured: list[float | None] = []
        while len(measured) < times and None not in measured:
            measured += await self.interrupted(kind, [owner])
        return measured + [None] * (times - len(measured))

    async def life(self, kind: Contender, name: str, look: Callable[[], Awaitable[Writes]]) -> Writes | None:
        """Return the writes of one life: applied, interrupted twice, deleted, gone. None if a part did not happen."""
        before = await self._quiet(look)
        owners, seconds = await self.applied(kind, [name])
        for _ in range(2):
            seconds += await self.interrupted(kind, owners)
        await self.deleted(kind, name)
        after = await self._quiet(look)
        return after.since(before) if None not in seconds else None

    async def deleted(self, kind: Contender, name: str) -> None:
        """Delete one and wait until it is gone. Raises TimeoutError."""
        path = f"{kind.collection}/{name}"
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        await self._api.request("DELETE", path, options)

        async def gone() -> bool:
            try:
                await self._api.get(path)
            except ApiError as error:
                if error.status == 404:
                    return True
                raise
            return False

        await _until(f"{name} is gone", gone)

    async def _settle(self, kind: Contender, owners: Sequence[Owner]) -> None:
        """Wait until the controller has caught up, so that the next measure does not stand behind this one's writes."""

        async def settled() -> bool:
            things = {one["metadata"]["uid"]: one for one in (await self._api.get(kind.collection))["items"]}
            return all(kind.settled(things[owner.uid], self._pods.count(owner.uid)) for owner in owners)

        await _until(f"{len(owners)} in {kind.collection} are settled", settled)

    async def _quiet(self, look: Callable[[], Awaitable[Writes]]) -> Writes:
        """Return the counts once they have stood still for a while: Kubernetes events are told late."""
        known, since = await look(), time.monotonic()

        async def still() -> bool:
            nonlocal known, since
            now = await look()
            if abs(now.total - known.total) > 1 or now.events != known.events:  # one Lease renewal may be in between
                known, since = now, time.monotonic()
            return time.monotonic() - since >= QUIET_SECONDS

        await _until("the operator is quiet", still)
        return await look()


async def _until(what: str, probe: Callable[[], Awaitable[bool]]) -> None:
    try:
        async with asyncio.timeout(SETTLED_LIMIT):
            while not await probe():
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {SETTLED_LIMIT:.0f} s") from None
