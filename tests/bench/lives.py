"""API writes of whole lives: what the operator writes from a run's creation to its end, checkpoints and all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from examples.stage import LORAS, Stage
from localcluster.api import Api
from lorafinetune.contract.layout import Location
from lorafinetune.storage.bucket import Bucket, Credentials
from tests.bench.contenders import NAMESPACE, Run
from tests.bench.hollowtrainer import HollowTrainer
from tests.bench.measures import Bench, until
from tests.bench.scrape import Writes

Object = dict[str, Any]

EVERY_STEPS = 10
BETWEEN = 1.5
"""Seconds between two checkpoints: longer than the operator holds news of mere progress back, so that none is saved."""
REAL_POOL, REAL_NODE = "real", "real-1"
REAL_LIMIT = 300.0


class Lives:
    """Lives one run after another, and counts."""

    def __init__(self, stage: Stage, api: Api, bench: Bench, run: Run, look: Callable[[], Awaitable[Writes]]) -> None:
        self._stage = stage
        self._api = api
        self._bench = bench
        self._run = run
        self._look = look

    async def short(self, name: str) -> Writes:
        """Return the writes of one life: applied, interrupted twice, deleted, gone."""
        before = await self._bench.quiet(self._look)
        owners, _ = await self._bench.applied(self._run, [name])
        for _ in range(2):
            await self._bench.interrupted(self._run, owners)
        return await self._ended(name, before)

    async def hollow(self, name: str, checkpoints: int) -> Writes:
        """Return the writes of one life: applied, interrupted once, so many checkpoints, finished, deleted, gone.

        Raises TimeoutError if a part of it does not happen.
        """
        before = await self._bench.quiet(self._look)
        await self.finished(name, checkpoints)
        return await self._ended(name, before)

    async def finished(self, name: str, checkpoints: int) -> None:
        """Bring a run to its success: applied, interrupted once, so many checkpoints, finished. Raises TimeoutError."""
        body = self._run.body(name)
        body["spec"]["training"]["steps"] = steps = EVERY_STEPS * (checkpoints + 1)
        owners, _ = await self._bench.applied(self._run, [name], lambda _name: body)
        await self._bench.interrupted(self._run, owners)
        pod = await self._api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{self._bench.newest(owners[0])}")
        async with HollowTrainer(self._api, pod, self._bucket()) as trainer:
            for number in range(1, checkpoints + 1):
                await trainer.checkpoint(EVERY_STEPS * number)
                await asyncio.sleep(BETWEEN)
            await trainer.finish(steps)
            await self._become(name, "it has succeeded", lambda status: status.get("pruned"))

    async def suspended(self, name: str) -> None:
        """Bring a run that has never had an attempt to where it is suspended. Raises TimeoutError."""
        body = self._run.body(name)
        body["spec"]["suspend"] = True
        await self._api.create(self._run.collection, body)
        await self._become(name, "it is suspended", lambda status: status.get("phase") == "Suspended")

    async def real(self, name: str) -> tuple[Writes, int]:
        """Return the writes of a run whose trainer trains the tiny SDXL, undisturbed, and how many checkpoints it made.

        Raises TimeoutError if it does not succeed.
        """
        self._stage.add_pool(REAL_POOL, price="0.348", default=False)
        await asyncio.to_thread(self._stage.add_node, REAL_NODE, REAL_POOL, cloud="generic", capacity_type="spot")
        before = await self._bench.quiet(self._look)
        body = self._run.body(name)
        body["spec"]["placement"] = {"pools": [REAL_POOL]}
        await self._bench.applied(self._run, [name], lambda _name: body)
        await self._become(name, "it has succeeded", lambda status: status.get("pruned"), REAL_LIMIT)
        spec = body["spec"]
        checkpoints = spec["training"]["steps"] // spec["checkpoint"]["everySteps"]
        writes = await self._ended(name, before)
        await asyncio.to_thread(self._stage.cluster.remove_node, REAL_NODE)
        return writes, checkpoints

    async def _ended(self, name: str, before: Writes) -> Writes:
        await self._bench.deleted(self._run, name)
        return (await self._bench.quiet(self._look)).since(before)

    async def _become(self, name: str, what: str, is_so: Callable[[Object], Any], limit: float = 60.0) -> None:
        async def so() -> bool:
            thing = await self._api.get(f"{self._run.collection}/{name}")
            return bool(is_so(thing.get("status") or {}))

        await until(f"{name}: {what}", so, limit=limit)

    def _bucket(self) -> Bucket:
        s3 = self._stage.cluster.s3
        return Bucket(
            Location(LORAS, ""),
            endpoint=s3.endpoint,
            region="us-east-1",
            credentials=Credentials(s3.access_key, s3.secret_key),
        )
