"""Secrets, read when they are needed and remembered for seconds only: a wave of runs that share one reads it once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from lorafinetune.kube.client import SECRETS, Cluster

Object = dict[str, Any]

TRUSTED_SECONDS: Final = 5.0
"""So long what was read stands for what is there. One that is missing is asked for anew each time."""


@dataclass(frozen=True, slots=True)
class _Answer:
    asked: float
    """Monotonic seconds before the question was sent: what is there may have changed since."""
    content: asyncio.Task[Object | None]


class Secrets:
    """Reads Secrets of any namespace. Bounded by what was asked for in the last seconds."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._answers: dict[tuple[str, str], _Answer] = {}

    async def read(self, namespace: str, name: str) -> Object | None:
        """Return the Secret as it was within the last seconds, or None if it is not there. Raises ClusterError."""
        now = self._clock()
        self._answers = {key: one for key, one in self._answers.items() if now - one.asked < TRUSTED_SECONDS}
        known = self._answers.get((namespace, name))
        if known is None:
            asking = asyncio.create_task(self._cluster.get(SECRETS, name, namespace))
            asking.add_done_callback(_heard)
            known = self._answers[namespace, name] = _Answer(now, asking)
        try:
            content = await asyncio.shield(known.content)  # others may wait for the same answer
        except Exception:
            self._forget(namespace, name, known)
            raise
        if content is None:
            self._forget(namespace, name, known)
        return content

    def _forget(self, namespace: str, name: str, answer: _Answer) -> None:
        if self._answers.get((namespace, name)) is answer:
            del self._answers[namespace, name]


def _heard(asking: asyncio.Task[Object | None]) -> None:
    """Take a failure for known: whoever asked may have been cancelled meanwhile."""
    if not asking.cancelled():
        asking.exception()
