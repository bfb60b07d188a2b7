"""Keep a store equal to the API server: list in pages, replace, watch; whatever goes wrong, list and replace again.

The official ``kubernetes.informer.SharedInformer`` replaces on re-list too, but it lists everything in one answer,
decodes it into models, has no read timeout (a half-open connection hangs it for ever) and does not say when it is in
step; so this is our own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from lorafinetune.kube.client import WATCH_SILENCE, Cluster
from lorafinetune.kube.errors import ClusterError, Gone
from lorafinetune.kube.resource import Resource
from lorafinetune.kube.store import Change, Object, Store

MAX_BACKOFF: Final = 30.0
"""Seconds between two lists of a server that keeps failing, jittered."""
LAG_LIMIT: Final = 180.0
"""Seconds without any sign of life after which a reflector counts as lagging: two silences."""
BRIEF: Final = 1.0
"""A watch that ends within so many seconds and told nothing counts as a failure: something in between cuts it off."""

_log = logging.getLogger(__name__)


def trim(thing: Object) -> Object:
    """Drop what no decision reads and what makes up half of the memory; change and return the object."""
    thing["metadata"].pop("managedFields", None)
    return thing


class Reflector:
    """Feeds one store from one kind of resource and wakes the owner of each change.

    *wake* is called after the store has changed and must only file the news: it is called inline, and what it raises
    is logged and dropped. *on_seen* is called with the plural of the resource at each sign of life.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        store: Store,
        *,
        wake: Callable[[Change], None],
        namespace: str | None = None,
        label_selector: str | None = None,
        trim: Callable[[Object], Object] = trim,
        page: int = 500,
        silence: float = WATCH_SILENCE,
        on_seen: Callable[[str], None] | None = None,
    ) -> None:
        self.store = store
        self.synced = asyncio.Event()
        """Set once the store has held everything for the first time; stays set."""
        self.last_seen = time.monotonic()
        """Monotonic seconds of the latest sign of life: a list, an event or a bookmark."""
        self.resumed_at = time.monotonic()
        """Monotonic seconds since when the view is unbroken: it moves when a list follows a failure."""
        self.healthy = False
        """Whether the last thing heard was no failure."""
        self._cluster = cluster
        self._resource = resource
        self._wake = wake
        self._namespace = namespace
        self._label_selector = label_selector
        self._trim = trim
        self._page = page
        self._silence = silence
        self._on_seen = on_seen or (lambda _plural: None)
        self._failures = 0

    @property
    def name(self) -> str:
        """Return the plural of the resource, as logs and metrics call the reflector."""
        return self._resource.plural

    def lagging(self, limit: float = LAG_LIMIT) -> bool:
        """Return whether nothing, not even a bookmark, came for *limit* seconds."""
        return time.monotonic() - self.last_seen > limit

    async def run(self) -> None:
        """Follow the resource until cancelled; no failure of the API server ends it."""
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._list()
                version = await self._follow(version)
            except ClusterError as error:
                # Resuming from the old version after a break could hide a gap; a list cannot.
                version = None
                self.healthy = False
                self._failures += 1
                pause = min(MAX_BACKOFF, 0.1 * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1.0)
                level = logging.INFO if isinstance(error, Gone) else logging.WARNING
                _log.log(level, "watch of %s lost, listing again in %.1f s: %s", self.name, pause, error)
                await asyncio.sleep(pause)

    async def _list(self) -> str:
        objects, version = await self._cluster.list_all(
            self._resource, self._namespace, label_selector=self._label_selector, limit=self._page
        )
        changes = self.store.replace([self._trim(thing) for thing in objects], version)
        self._seen()
        if not self.healthy:
            self.resumed_at, self.healthy = time.monotonic(), True
        self.synced.set()
        for change in changes:
            self._tell(change)
        return version

    async def _follow(self, version: str) -> str:
        """Watch from *version* until the server closes the stream; return the version to resume from."""
        begun, told = time.monotonic(), False
        stream = self._cluster.watch(
            self._resource,
            self._namespace,
            resource_version=version,
            label_selector=self._label_selector,
            silence=self._silence,
        )
        async with aclosing(stream):
            async for event in stream:
                told, self._failures = True, 0
                thing = event["object"]
                change = self.store.take(event["type"], self._trim(thing))
                version = thing["metadata"]["resourceVersion"]
                self._seen()
                if change is not None:
                    self._tell(change)
        if not told and time.monotonic() - begun < BRIEF:
            raise ClusterError(f"the watch of {self.name} ended at once")
        return version

    def _seen(self) -> None:
        self.last_seen = time.monotonic()
        self._on_seen(self.name)

    def _tell(self, change: Change) -> None:
        try:
            self._wake(change)
        except Exception:
            _log.exception("waking the owner of %s %s failed", self.name, change.key)
