"""What the loop tells the outside: one log line per new decision, Kubernetes events, metrics, abandoned prefixes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any, Final

from lorafinetune.api import API_VERSION
from lorafinetune.engine.classify import PREEMPTIONS
from lorafinetune.engine.decision import Announcement, CreatePod, Decision
from lorafinetune.engine.observation import RunSeen
from lorafinetune.engine.times import instant, stamp
from lorafinetune.kube.client import CONFIGMAPS, Cluster
from lorafinetune.kube.errors import AlreadyExists, ClusterError
from lorafinetune.kube.events import EventRecorder, Reference
from lorafinetune.telemetry import Metrics

Object = dict[str, Any]

ABANDONED: Final = "lorafinetune-abandoned"
"""ConfigMap of the operator's namespace: one entry per prefix that was left behind."""
MAX_ABANDONED: Final = 1000

_NUMBER: Final = re.compile(r"[0-9]+")

_log = logging.getLogger("lorafinetune.decisions")


class Witness:
    """Tells, and never stands in the loop's way."""

    def __init__(
        self,
        cluster: Cluster,
        recorder: EventRecorder,
        metrics: Metrics,
        *,
        namespace: str,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._cluster = cluster
        self._recorder = recorder
        self._metrics = metrics
        self._namespace = namespace
        self._last: dict[str, tuple[int, str, str]] = {}
        """Of each run what was last said, without its numbers: a step, a speed or a time that moves on is no news."""

    def decided(self, run: RunSeen, decision: Decision) -> None:
        """Count what ended; log the decision if it says something new."""
        for cause, pool in decision.ended:
            self._metrics.attempt_ended(cause)
            if cause in PREEMPTIONS:
                self._metrics.preempted(cause, pool)
        for one in decision.corrected:
            self._metrics.corrected(one.was, one.now)
        if decision.makes_attempt and decision.status.attempts:
            last = decision.status.attempts[-1]
            if last.cause in PREEMPTIONS and last.ended is not None:
                self._metrics.replaced(max(0.0, self._clock() - instant(last.ended)))
        said = (decision.status.attempt or 0, decision.reason, _NUMBER.sub("#", decision.message))
        level = logging.DEBUG if self._last.get(run.uid) == said else logging.INFO
        self._last[run.uid] = said
        if not _log.isEnabledFor(level):
            return
        made = next((action.attempt for action in decision.actions if isinstance(action, CreatePod)), None)
        about = _about(run) | {
            "generation": run.generation,
            "attempt": made or decision.status.attempt,
            "reason": decision.reason,
            "phase": decision.status.phase,
            "did": ", ".join(type(action).__name__ for action in decision.actions) or None,
            "pool": decision.status.pool,
            "step": decision.status.step,
        }
        _log.log(level, decision.message, extra=about)

    def forgotten(self, uid: str) -> None:
        """Drop what is remembered of a run that is gone."""
        self._last.pop(uid, None)

    def failed(self, run: RunSeen, error: Exception) -> None:
        """Log a pass that will be repeated."""
        _log.warning("will try again: %s", error, extra=_about(run) | {"reason": type(error).__name__})

    def announced(self, run: Object, announcement: Announcement) -> None:
        """Record a Kubernetes event on the run."""
        self._recorder.record(
            Reference.to(API_VERSION, "LoRAFineTune", run),
            reason=announcement.reason,
            action="Reconcile",
            note=announcement.message,
            warning=announcement.warning,
        )

    async def recall(self) -> None:
        """Say how many prefixes an operator before us left behind. Raises ClusterError."""
        found = await self._cluster.get(CONFIGMAPS, ABANDONED, self._namespace)
        self._metrics.abandoned(len((found or {}).get("data") or {}))

    async def abandoned(self, run: RunSeen, prefix: str, message: str) -> None:
        """Write the prefix into the operator's ConfigMap, for whoever cleans up; a failure to is logged, not raised."""
        _log.error("prefix left behind: %s: %s", prefix, message, extra=_about(run) | {"reason": "Abandoned"})
        entry = json.dumps(
            {
                "prefix": prefix,
                "run": f"{run.namespace}/{run.name}",
                "time": stamp(run.deleting_since or 0),
                "why": message,
            }
        )
        try:
            found = await self._cluster.get(CONFIGMAPS, ABANDONED, self._namespace)
            if found is None:
                body = {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": ABANDONED},
                    "data": {run.uid: entry},
                }
                await self._cluster.create(CONFIGMAPS, body, self._namespace)
                self._metrics.abandoned(1)
                return
            data = found.get("data") or {}
            self._metrics.abandoned(len(data | {run.uid: entry}))
            if len(data) < MAX_ABANDONED:
                operations: list[Object] = [{"op": "add", "path": "/data", "value": data | {run.uid: entry}}]
                await self._cluster.json_patch(CONFIGMAPS, ABANDONED, self._namespace, operations)
        except AlreadyExists:
            await self.abandoned(run, prefix, message)
        except ClusterError as error:
            _log.error("the abandoned prefix could not be written down: %s", error, extra=_about(run))


def _about(run: RunSeen) -> dict[str, str]:
    return {"run": f"{run.namespace}/{run.name}", "uid": run.uid}
