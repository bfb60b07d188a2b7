"""Writes one pod's status to the API server: the newest state, as often as it takes, also while the server is away."""

from __future__ import annotations

import asyncio
import logging

from localcluster.api import STRATEGIC, Api, ApiError, Json, unreachable

log = logging.getLogger("localcluster.node.status")
RETRY_FIRST, RETRY_LAST = 0.2, 5.0


class StatusWriter:
    """Takes states without waiting; `run` writes them, skipping those that a newer one has replaced."""

    def __init__(self, api: Api, path: str, uid: str) -> None:
        self.api = api
        self.path = path
        self.uid = uid
        self._wanted: Json = {}
        self._written: Json = {}
        self._dirty = asyncio.Event()
        self._clean = asyncio.Event()
        self._clean.set()

    def write(self, status: Json) -> None:
        """Have this state written."""
        if status != self._wanted:
            self._wanted = status
            self._clean.clear()
            self._dirty.set()

    async def flush(self) -> None:
        """Wait until the newest state is written, or the object is known to be gone."""
        await self._clean.wait()

    async def run(self) -> None:
        """Write, for ever."""
        delay = RETRY_FIRST
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._patch(self._wanted)
            except ApiError as error:
                if error.status not in (404, 409):  # gone, or another pod of this name: nobody is left to tell
                    log.warning("status of %s not written: %s", self.path, error)
                    self._dirty.set()
            except Exception as error:
                if not unreachable(error):
                    raise
                log.warning("status of %s not written: %s", self.path, error or type(error).__name__)
                self._dirty.set()
            if self._dirty.is_set():
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_LAST)
            else:
                delay = RETRY_FIRST
                self._clean.set()

    async def _patch(self, status: Json) -> None:
        if status != self._written:
            body = {"metadata": {"uid": self.uid}, "status": status}
            await self.api.patch(f"{self.path}/status", body, STRATEGIC)
            self._written = status
