"""Kubernetes events as evidence: those of one pod, read when the engine asks, reduced to what it wants to know.

Reading is beside the loop and bounded: one pod at a time, one request of one page for each, a pause between two, and
none twice in the queue. So with many pods each is looked at more seldom. Events are hints, best effort on both sides:
one that cannot be read is missing, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from lorafinetune.engine import notices
from lorafinetune.engine.observation import EventsSeen
from lorafinetune.engine.times import instant
from lorafinetune.kube.client import EVENTS, Cluster
from lorafinetune.kube.errors import ClusterError, Refused

Object = dict[str, Any]

PAGE: Final = 200
"""Events that are read of one pod; more distinct ones than a pod has."""
PAUSE: Final = 0.2
"""Seconds between two requests, at least."""
REST: Final = 9.0
"""So many times as long as the last request took is the pause after it: the API server goes through all events of the
namespace for each, which with thousands of waiting pods are tens of thousands. It is never asked for more than a tenth
of the time."""
MAX_WAITING: Final = 10_000
"""Pods that may wait to be looked at; the engine asks again for those that were left out."""
CLAIMS_KEPT: Final = 15.0
"""Seconds for which the failed NodeClaims that were read last are believed to be all."""
MAX_SENTENCE: Final = 400
CLUSTER_SCOPE: Final = "default"
"""The namespace in which events of objects without a namespace are kept."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Question:
    namespace: str
    name: str
    run_uid: str


class EventReader:
    """Reads the events of pods, one after another, and wakes the run that asked."""

    def __init__(
        self, cluster: Cluster, *, wake: Callable[[str], None], clock: Callable[[], float], pause: float = PAUSE
    ) -> None:
        self._cluster = cluster
        self._wake = wake
        self._clock = clock
        self._pause = pause
        self._told: dict[str, EventsSeen] = {}
        self._waiting: dict[str, _Question] = {}
        self._claims: dict[str, tuple[float, str]] = {}
        self._claims_read = 0.0
        self._refused: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def told(self, pod_uid: str) -> EventsSeen | None:
        """Return what the events of that pod told when they were last read."""
        return self._told.get(pod_uid)

    def ask(self, namespace: str, name: str, pod_uid: str, run_uid: str) -> None:
        """Have the events of a pod read, unless that is under way."""
        if pod_uid in self._waiting or len(self._waiting) >= MAX_WAITING:
            return
        self._waiting[pod_uid] = _Question(namespace, name, run_uid)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    def forget(self, pod_uid: str) -> None:
        """Drop what is known of a pod that is gone."""
        self._told.pop(pod_uid, None)
        self._waiting.pop(pod_uid, None)

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            pod_uid, question = next(iter(self._waiting.items()))
            begun = time.monotonic()
            try:
                await self._look(pod_uid, question)
            except Exception:  # whatever somebody wrote into an event: the next pod's turn comes all the same
                _log.exception("the events of %s/%s could not be read", question.namespace, question.name)
                self._keep(pod_uid)
            if self._waiting.pop(pod_uid, None) is None:
                self._told.pop(pod_uid, None)  # it has gone meanwhile
            self._wake(question.run_uid)
            await asyncio.sleep(max(self._pause, REST * (time.monotonic() - begun)))

    async def _look(self, pod_uid: str, question: _Question) -> None:
        events = await self._list(question.namespace, f"regarding.uid={pod_uid}")
        if events is None:
            self._keep(pod_uid)
            return
        claims = await self._failed_claims() if any(_claims_of(event) for event in events) else {}
        self._told[pod_uid] = reduce(events, claims, self._clock())

    def _keep(self, pod_uid: str) -> None:
        """What was known stays, and is not asked for again at once."""
        now = self._clock()
        self._told[pod_uid] = replace(self._told.get(pod_uid, EventsSeen(now)), read=now)

    async def _failed_claims(self) -> Mapping[str, tuple[float, str]]:
        """Return for each NodeClaim that found no machine when, and in what words; read once for all pods."""
        now = self._clock()
        if now - self._claims_read >= CLAIMS_KEPT:
            self._claims_read = now
            events = await self._list(CLUSTER_SCOPE, f"reason={notices.CLAIM_FAILED}") or []
            self._claims = {(e.get("regarding") or {}).get("name", ""): (_last(e), _note(e)) for e in events}
        return self._claims

    async def _list(self, namespace: str, selector: str) -> list[Object] | None:
        """Return the events, or None if they cannot be read now."""
        try:
            return await self._cluster.list_some(EVENTS, namespace, field_selector=selector, limit=PAGE)
        except Refused as error:
            if namespace not in self._refused:
                self._refused.add(namespace)
                _log.warning("Kubernetes events of namespace %s may not be read: %s", namespace, error)
        except ClusterError as error:
            _log.info("Kubernetes events of namespace %s could not be read: %s", namespace, error)
        return None


def reduce(events: Iterable[Object], claims: Mapping[str, tuple[float, str]], now: float) -> EventsSeen:
    """Return what a pod's *events* tell. *claims* are the NodeClaims that found no machine: when, and in what words.

    Of what contradicts, the newer counts: a scale-up that began after the autoscaler had said no, or the other way.
    """
    known = sorted(events, key=_last)
    scaling: Object | None = None
    no_scale_up, no_capacity, start_problem = "", "", ""
    for event in known:
        reason, note = event.get("reason", ""), _note(event)
        if reason in notices.SCALING_UP:
            failed = [claims[claim] for claim in _claims_of(event) if claim in claims]
            if failed:
                scaling, no_capacity = None, max(failed)[1]
            else:
                scaling, no_scale_up, no_capacity = scaling or event, "", ""
        elif any(reason == word and note.startswith(begin) for word, begin in notices.NOT_SCALING_UP):
            scaling, no_scale_up = None, note or reason
        elif reason == notices.NO_CAPACITY:
            scaling, no_capacity = None, note or reason
        elif reason in notices.NOT_STARTING:
            start_problem = f"{reason}: {note}"
    ending = next(
        (
            event
            for word, begin, _ in notices.ENDING_WORDS
            for event in reversed(known)
            if event.get("reason") == word and _note(event).startswith(begin)
        ),
        None,
    )
    return EventsSeen(
        read=now,
        scale_up_since=_first(scaling) if scaling is not None else None,
        no_scale_up=no_scale_up,
        insufficient_capacity=no_capacity,
        start_problem=start_problem[:MAX_SENTENCE],
        platform_word=ending.get("reason", "") if ending is not None else "",
        platform_message=_note(ending) if ending is not None else "",
    )


def _claims_of(event: Object) -> list[str]:
    """Return the NodeClaims that Karpenter names for a pod."""
    if event.get("reason") not in notices.SCALING_UP:
        return []
    words = _note(event).replace(",", " ").split()
    return [word.removeprefix(notices.NODE_CLAIM) for word in words if word.startswith(notices.NODE_CLAIM)]


def _note(event: Object) -> str:
    return " ".join((event.get("note") or "").split())[:MAX_SENTENCE]


def _last(event: Object) -> float:
    """Return when the event was last seen; recorders of both generations fill different members."""
    series = event.get("series") or {}
    return _time(series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"), event)


def _first(event: Object) -> float:
    return _time(event.get("eventTime"), event.get("deprecatedFirstTimestamp"), None, event)


def _time(one: str | None, two: str | None, three: str | None, event: Object) -> float:
    text = one or two or three or event["metadata"].get("creationTimestamp")
    return instant(text) if text else 0.0
