"""The measures themselves, each the same for both contenders: create, interrupt, and wait for the pod that follows."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localcluster.api import STRATEGIC, Api, ApiError
from tests.bench.contenders import NAMESPACE, Contender, interruption
from tests.bench.podwatch import PodWatch
from tests.bench.scrape import Writes

Object = dict[str, Any]

WRITERS = 20
"""Requests that the bench has under way at once."""
CREATED_LIMIT = 30.0
"""Seconds until a first pod that is not there counts as missing; and for each that is made at the same time:"""
CREATED_LIMIT_EACH = 0.2
PAGE = 100
"""Objects that are listed in one request."""
REPLACED_LIMIT = 75.0
REPLACED_LIMIT_EACH = 0.1
SETTLED_LIMIT = 120.0
SETTLED_LIMIT_EACH = 0.3
"""On two busy cores the API server takes a quarter of a second for all that is written of one interruption."""
LOOK_SECONDS = 0.2
QUIET_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Owner:
    """A run or Job that was made."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Wave:
    """What many owners did at once: the seconds of each, and of all from the first request to the last pod."""

    each: list[float | None]
    span: float

    @property
    def rate(self) -> float | None:
        """Pods created per second; None if one is missing."""
        return len(self.each) / self.span if None not in self.each else None


class Bench:
    """One API server with both controllers on it, and a watch of the pods that they make."""

    def __init__(self, api: Api, pods: PodWatch) -> None:
        self._api = api
        self._pods = pods
        self._writers = asyncio.Semaphore(WRITERS)
        self.lost: list[str] = []
        """What became of each owner whose pod did not come: its own words, asked for when the time was up."""

    async def applied(
        self, kind: Contender, names: Sequence[str], body: Callable[[str], Object] | None = None
    ) -> tuple[list[Owner], Wave]:
        """Create all *names* at once; return them, and the seconds from each one's request to its first pod.

        *body* returns the object of a name, where it is not the contender's own.
        """
        limit = CREATED_LIMIT + CREATED_LIMIT_EACH * len(names)
        begin = time.monotonic()
        pairs = await asyncio.gather(*(self._applied(kind, name, (body or kind.body)(name), limit) for name in names))
        span = time.monotonic() - begin
        owners = [owner for owner, _ in pairs]
        await self._settle(kind, [owner for owner, seconds in pairs if seconds is not None])
        return owners, Wave([seconds for _, seconds in pairs], span)

    async def _applied(self, kind: Contender, name: str, body: Object, limit: float) -> tuple[Owner, float | None]:
        async with self._writers:
            begin = time.monotonic()
            made = await self._api.create(kind.collection, body)
        owner = Owner(name, made["metadata"]["uid"])
        return owner, await self._waited(kind, owner, 1, begin, limit)

    async def _waited(self, kind: Contender, owner: Owner, number: int, begin: float, limit: float) -> float | None:
        """Return the seconds from *begin* to the owner's *number*-th pod; None after *limit*, and file what it says."""
        seen = await self._pods.wait(owner.uid, number, limit)
        if seen is not None:
            return seen.at - begin
        thing = await self._api.get(f"{kind.collection}/{owner.name}")
        said = (thing.get("status") or {}).get("message") or "nothing"
        self.lost.append(f"{owner.name}: no pod number {number} within {limit:.0f} s; it says: {said}")
        return None

    async def interrupted(self, kind: Contender, owners: Sequence[Owner]) -> Wave:
        """Interrupt the newest pod of all *owners* at once; return the seconds from each request to the next pod."""
        begin = time.monotonic()
        limit = REPLACED_LIMIT + REPLACED_LIMIT_EACH * len(owners)
        measured = await asyncio.gather(*(self._interrupted(kind, owner, limit) for owner in owners))
        span = time.monotonic() - begin
        await self._settle(kind, [one for one, seconds in zip(owners, measured, strict=True) if seconds is not None])
        return Wave(list(measured), span)

    async def _interrupted(self, kind: Contender, owner: Owner, limit: float = REPLACED_LIMIT) -> float | None:
        number = self._pods.count(owner.uid)
        if not number:
            return None
        async with self._writers:
            begin = time.monotonic()
            await self.interrupt(kind, owner)
        return await self._waited(kind, owner, number + 1, begin, limit)

    async def interrupt(self, kind: Contender, owner: Owner) -> None:
        """Write the end of the owner's newest pod into it."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{self.newest(owner)}/status"
        await self._api.patch(path, interruption(kind.container, datetime.datetime.now(datetime.UTC)), STRATEGIC)

    async def replaced(self, kind: Contender, owner: Owner, number: int, begin: float) -> float | None:
        """Return the seconds from *begin* to the pod after the owner's *number*-th; None if none came."""
        return await self._waited(kind, owner, number + 1, begin, REPLACED_LIMIT)

    def newest(self, owner: Owner) -> str:
        """Return the name of the owner's newest pod."""
        return self._pods.newest(owner.uid).name

    def pods_of(self, owner: Owner) -> int:
        """Return how many pods the owner has had."""
        return self._pods.count(owner.uid)

    async def spread_out(self, kind: Contender, owners: Sequence[Owner], gap: float) -> list[float | None]:
        """Interrupt one owner every *gap* seconds: alone each, but for waits that are a timer's and no work."""

        async def later(number: int, owner: Owner) -> float | None:
            await asyncio.sleep(gap * number)
            return await self._interrupted(kind, owner)

        measured = await asyncio.gather(*(later(number, owner) for number, owner in enumerate(owners)))
        await self._settle(kind, [one for one, seconds in zip(owners, measured, strict=True) if seconds is not None])
        return list(measured)

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

        await until(f"{name} is gone", gone)

    async def _settle(self, kind: Contender, owners: Sequence[Owner]) -> None:
        """Wait until the controller has caught up, so that the next measure does not stand behind this one's writes."""
        waiting = {owner.uid: owner for owner in owners}

        async def settled() -> bool:
            # Of a few, the others in that list would be most of the work.
            many = len(waiting) > WRITERS
            things = self._listed(kind) if many else self._each(kind, list(waiting.values()))
            async for thing in things:
                uid = thing["metadata"]["uid"]
                if uid in waiting and kind.settled(thing, self._pods.count(uid)):
                    del waiting[uid]
            return not waiting

        # Listing a thousand is work for the API server, which is what is measured: the more there are, the rarer.
        every = min(10.0, LOOK_SECONDS + len(owners) / 100)
        limit = SETTLED_LIMIT + SETTLED_LIMIT_EACH * len(owners)
        try:
            await until(f"{len(owners)} in {kind.collection} are settled", settled, every, limit)
        except TimeoutError as error:
            raise TimeoutError(
                f"{error}; {len(waiting)} are not, such as {next(iter(waiting.values())).name}"
            ) from None

    async def _listed(self, kind: Contender) -> AsyncIterator[Object]:
        """Yield all of a kind, page by page: a thousand in one answer take a busy API server longer than the client's
        patience."""
        query: dict[str, object] = {"limit": PAGE}
        while True:
            page = await self._api.get(kind.collection, **query)
            for thing in page["items"]:
                yield thing
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    async def _each(self, kind: Contender, owners: Sequence[Owner]) -> AsyncIterator[Object]:
        for owner in owners:
            yield await self._api.get(f"{kind.collection}/{owner.name}")

    async def quiet(self, look: Callable[[], Awaitable[Writes]]) -> Writes:
        """Return the counts once they have stood still for a while: Kubernetes events are told late."""
        known, since = await look(), time.monotonic()

        async def still() -> bool:
            nonlocal known, since
            now = await look()
            if abs(now.total - known.total) > 1 or now.events != known.events:  # one Lease renewal may be in between
                known, since = now, time.monotonic()
            return time.monotonic() - since >= QUIET_SECONDS

        await until("the operator is quiet", still, QUIET_SECONDS / 4)
        return await look()


async def until(
    what: str, probe: Callable[[], Awaitable[bool]], every: float = LOOK_SECONDS, limit: float = SETTLED_LIMIT
) -> None:
    """Return once *probe* says yes; a request of its that took too long is made again. Raises TimeoutError."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            if await probe():
                return
        await asyncio.sleep(every)
    raise TimeoutError(f"{what}: not within {limit:.0f} s")
