"""Keeps the status of each GPUPool up to date, for people: kubectl get gpool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from lorafinetune.api import API_VERSION
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.engine.fleet import Fleet, PoolKnown
from lorafinetune.engine.poolstate import pool_status
from lorafinetune.kube.client import POOLS, Cluster
from lorafinetune.kube.errors import ClusterError
from lorafinetune.kube.status import MANAGER
from lorafinetune.kube.store import Store

Object = dict[str, Any]

LOOK_EVERY: Final = 2.0
"""Seconds between two looks at all pools."""
WRITE_EVERY: Final = 30.0
"""Seconds between two writes to one pool: with a thousand runs, something of it changes all the time."""
STATE_EVERY: Final = 5.0
"""Seconds after a write for which not even a new state is written."""

_log = logging.getLogger(__name__)


class PoolBoard:
    """Writes what is known of the pools, where that differs from what stands there."""

    def __init__(
        self,
        cluster: Cluster,
        pools: Store,
        *,
        known: Callable[[], tuple[Mapping[str, GPUPoolSpec], Fleet]],
        clock: Callable[[], float],
    ) -> None:
        """*known* returns the pools that can be read, and what is known of them."""
        self._cluster = cluster
        self._pools = pools
        self._known = known
        self._clock = clock
        self._written: dict[str, float] = {}

    async def run(self) -> None:
        """Work until cancelled. What cannot be written is tried again later: nothing hangs on it."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._look()
            except Exception:
                _log.exception("the pools' status could not be made")

    async def _look(self) -> None:
        specs, fleet = self._known()
        now = self._clock()
        for name in self._written.keys() - specs.keys():
            del self._written[name]
        for name, spec in specs.items():
            pool = self._pools.get(name)
            status = pool_status(fleet.get(name, PoolKnown()), spec, now).to_json()
            shown = (pool or {}).get("status") or {}
            if pool is None or shown == status:
                continue
            least = WRITE_EVERY if shown.get("state") == status.get("state") else STATE_EVERY
            if now - self._written.get(name, 0.0) < least:
                continue
            self._written[name] = now
            try:
                self._pools.learn(await self._write(pool, status))
            except ClusterError as error:
                _log.warning("the status of GPUPool %s could not be written: %s", name, error)

    async def _write(self, pool: Object, status: Object) -> Object:
        body = {
            "apiVersion": API_VERSION,
            "kind": "GPUPool",
            "metadata": {"name": pool["metadata"]["name"], "uid": pool["metadata"]["uid"]},
            "status": status,
        }
        return await self._cluster.apply(POOLS, body, manager=MANAGER, subresource="status")
