"""Kubernetes events on a run, for people: what happened, in words, told once and counted when it happens again.

Best effort by nature: recording never waits, never raises and never grows without bound; what cannot be told is
counted as dropped. The same news has the same name, so a restarted operator continues its series.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lorafinetune.api import GROUP
from lorafinetune.kube.client import EVENTS, Cluster
from lorafinetune.kube.errors import AlreadyExists, ClusterError, Unavailable
from lorafinetune.ratelimit import RateLimit

CONTROLLER: Final = f"{GROUP}/operator"
MAX_NOTE: Final = 1024
"""Bytes, as the API server allows."""
MAX_WAITING: Final = 1000
MAX_REMEMBERED: Final = 4096
OBJECT_RATE: Final = (1 / 20, 30)
"""Events a second in the long run, and at once, on one object."""
TRIES: Final = 3
FLUSH_SECONDS: Final = 3.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reference:
    """What an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def to(cls, api_version: str, kind: str, thing: dict[str, Any]) -> Reference:
        """Return the reference to an object; kind and version are named, since items of a list carry neither."""
        metadata = thing["metadata"]
        return cls(api_version, kind, metadata.get("namespace") or "", metadata["name"], metadata["uid"])

    def to_json(self) -> dict[str, str]:
        """Return a core/v1 ObjectReference."""
        reference = {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}
        return reference | ({"namespace": self.namespace} if self.namespace else {})


@dataclass(frozen=True, slots=True)
class News:
    """One thing to tell. Two that are equal are the same news, happening again."""

    regarding: Reference
    reason: str
    """CamelCase: the same word as in conditions, logs and metrics."""
    action: str
    """What the operator did about it: a CamelCase verb."""
    note: str
    warning: bool = False
    related: Reference | None = None

    @property
    def name(self) -> str:
        """Return the name of its Event object."""
        parts = (self.regarding.uid, self.reason, self.action, self.note, str(self.warning), str(self.related))
        return f"{self.regarding.name}.{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


@dataclass(slots=True)
class _Waiting:
    """How often the news came since it was last written, first and last when."""

    count: int
    first: datetime.datetime
    last: datetime.datetime


class EventRecorder:
    """Tells news to the API server from one task, ``run``. *count* is called with the outcome of each."""

    def __init__(
        self,
        cluster: Cluster,
        instance: str,
        *,
        count: Callable[[str], None] | None = None,
        limit: RateLimit | None = None,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._cluster = cluster
        self._instance = instance[:128]
        self._count = count or (lambda _outcome: None)
        self._limit = limit or RateLimit(*OBJECT_RATE)
        self._clock = clock
        self._waiting: OrderedDict[News, _Waiting] = OrderedDict()
        self._wake = asyncio.Event()
        self._telling = 0
        self._idle = asyncio.Event()
        """Set while nothing is on its way."""
        self._idle.set()
        self._told: OrderedDict[str, int] = OrderedDict()
        """Name of the Event to how often it is known to have happened."""
        self.dropped = 0
        """How many were not told: too many on one object, too many at once, or the API server would not have them."""

    def record(
        self,
        regarding: Reference,
        *,
        reason: str,
        action: str,
        note: str,
        warning: bool = False,
        related: Reference | None = None,
    ) -> None:
        """File the news; returns at once and never raises."""
        news = News(regarding, reason, action, _cut(note), warning, related)
        now = self._clock()
        if (waiting := self._waiting.get(news)) is not None:
            waiting.count, waiting.last = waiting.count + 1, now
            return
        if len(self._waiting) >= MAX_WAITING or self._limit.take(regarding.uid):
            self._drop("dropped")
            return
        self._waiting[news] = _Waiting(1, now, now)
        self._wake.set()

    async def run(self) -> None:
        """Tell what is filed until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._tell_all()

    async def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Tell what is filed, whether ``run`` still runs or not, in *seconds* at most; the rest is dropped."""
        try:
            async with asyncio.timeout(seconds):
                await self._tell_all()
                await self._idle.wait()
        except TimeoutError:
            _log.debug("%d events were not told before the end", len(self._waiting))
            while self._waiting:
                self._waiting.popitem()
                self._drop("dropped")

    async def _tell_all(self) -> None:
        while self._waiting:
            news, waiting = self._waiting.popitem(last=False)
            self._telling += 1
            self._idle.clear()
            try:
                self._count(await self._tell(news, waiting))
            except ClusterError as error:
                self._drop("failed")
                _log.debug("event %s on %s was not taken: %s", news.reason, news.regarding.name, error)
            except Exception:
                self._drop("failed")
                _log.exception("event %s on %s could not be told", news.reason, news.regarding.name)
            finally:
                self._telling -= 1
                if not self._telling:
                    self._idle.set()

    async def _tell(self, news: News, waiting: _Waiting) -> str:
        for again in reversed(range(TRIES)):
            try:
                return await self._write(news, waiting)
            except Unavailable:
                if not again:
                    raise
                await asyncio.sleep(0.5 * (TRIES - again))
        raise AssertionError("the last try returns or raises")

    async def _write(self, news: News, waiting: _Waiting) -> str:
        name, namespace = news.name, news.regarding.namespace or "default"
        known = self._told.get(name)
        if known is None:
            try:
                await self._cluster.create(EVENTS, self._body(news, waiting), namespace)
            except AlreadyExists:
                stored = await self._cluster.get(EVENTS, name, namespace) or {}
                known = int((stored.get("series") or {}).get("count", 1))
                if stored.get("eventTime") == _micro(waiting.first):  # by a try of ours whose answer was lost
                    self._remember(name, known)
                    return "created"
            else:
                self._remember(name, waiting.count)
                return "created"
        count = known + waiting.count
        series = {"count": count, "lastObservedTime": _micro(waiting.last)}
        if await self._cluster.json_patch(EVENTS, name, namespace, [_set_series(series)]) is None:
            # Expired in the meantime (an hour after the last change, by default): it begins anew.
            self._told.pop(name, None)
            await self._cluster.create(EVENTS, self._body(news, waiting), namespace)
            count = waiting.count
        self._remember(name, count)
        return "repeated"

    def _body(self, news: News, waiting: _Waiting) -> dict[str, Any]:
        body: dict[str, Any] = {
            "apiVersion": EVENTS.api_version,
            "kind": "Event",
            "metadata": {"name": news.name, "namespace": news.regarding.namespace or "default"},
            "eventTime": _micro(waiting.first),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": news.action,
            "reason": news.reason,
            "type": "Warning" if news.warning else "Normal",
            "note": news.note,
            "regarding": news.regarding.to_json(),
        }
        if news.related is not None:
            body["related"] = news.related.to_json()
        if waiting.count > 1:
            body["series"] = {"count": waiting.count, "lastObservedTime": _micro(waiting.last)}
        return body

    def _remember(self, name: str, count: int) -> None:
        self._told.pop(name, None)
        self._told[name] = count
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)

    def _drop(self, outcome: str) -> None:
        self.dropped += 1
        self._count(outcome)


def _set_series(series: dict[str, Any]) -> dict[str, Any]:
    return {"op": "add", "path": "/series", "value": series}


def _cut(note: str) -> str:
    """Return *note* in MAX_NOTE bytes at most; what was cut shows."""
    content = note.encode()
    if len(content) <= MAX_NOTE:
        return note
    return content[: MAX_NOTE - 3].decode(errors="ignore") + "..."


def _micro(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
