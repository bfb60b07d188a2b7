"""Runs of which no pass can be made: what their users are told, when they are looked at again, and how they are let go.

What is stored may be forged, or come from another version of us. That is one run's trouble: others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

from lorafinetune.act import Actor, Witness
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine.conditions import clip
from lorafinetune.engine.decision import Announcement
from lorafinetune.engine.observation import RunSeen
from lorafinetune.kube import errors, status
from lorafinetune.kube.client import Cluster
from lorafinetune.kube.stores import Stores

Object = dict[str, Any]

RETRY: Final = 5.0
"""Seconds until a pass that failed is repeated; twice as many each time, in a row."""
UNREADABLE: Final = 60.0
"""Seconds until a run that cannot be read is looked at again, or one of which no pass ever comes to its end."""
TOLD_AFTER: Final = 3
"""Passes in a row that fail before the run says so: one may be a race."""
PARTS: Final = {LoRAFineTuneSpec.__name__: "spec", LoRAFineTuneStatus.__name__: "status"}
"""What users call what we cannot read."""

_log = logging.getLogger(__name__)


class Complaints:
    """Tells why nothing is done about a run, on the run itself."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        actor: Actor,
        witness: Witness,
        *,
        clock: Callable[[], float],
        collect_timeout: float,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._actor = actor
        self._witness = witness
        self._clock = clock
        self._collect_timeout = collect_timeout
        self._rows: dict[str, int] = {}
        """Passes in a row of each run that failed, nobody knows why."""

    def forget(self, uid: str) -> None:
        """Take a pass that came to its end, or the end of the run."""
        self._rows.pop(uid, None)

    async def unreadable(self, run: Object, about: RunSeen, error: ValidationError) -> float:
        """Leave a run alone that the schema took and we cannot read; return when to look again, in seconds."""
        first = error.errors(include_url=False, include_input=False)[0]
        path = [PARTS.get(error.title, error.title), *(str(part) for part in first["loc"])]
        self._witness.failed(about, error)
        said = first["msg"].removeprefix("Value error, ")
        await self._say(run, about, "Unreadable", f"{'.'.join(path)} cannot be read: {said}")
        return UNREADABLE

    async def failing(self, run: Object, about: RunSeen, error: Exception) -> float:
        """Take a pass that failed, and nobody knows why; return when to try again, in seconds."""
        _log.exception("pass failed", extra={"uid": about.uid, "run": f"{about.namespace}/{about.name}"})
        self._witness.failed(about, error)
        row = self._rows[about.uid] = self._rows.get(about.uid, 0) + 1
        if row >= TOLD_AFTER:
            said = f"this operator cannot go on with the run: {type(error).__name__}: {error}"
            await self._say(run, about, "PassFailed", said)
        return min(UNREADABLE, RETRY * 2.0 ** min(row - 1, 16))

    async def _say(self, run: Object, about: RunSeen, reason: str, message: str) -> None:
        message = clip(message)
        self._witness.announced(run, Announcement(reason, message, warning=True))
        if about.deleting_since is not None:
            await self._give_up(run, about, message)
            return
        try:
            written = await status.complain(self._cluster, run, reason, message, self._clock())
        except errors.ClusterError as failure:
            self._witness.failed(about, failure)
            return
        if written is not None:
            self._stores.runs.learn(written)

    async def _give_up(self, run: Object, about: RunSeen, message: str) -> None:
        """Let a deleted run go that no pass can be finished for, once its time is up: nothing is stuck for ever."""
        if about.deleting_since is None or not about.has_finalizer:
            return
        if self._clock() - about.deleting_since < self._collect_timeout:
            return
        await self._witness.abandoned(about, (run.get("status") or {}).get("prefix", ""), message)
        try:
            await self._actor.let_go(run)
        except errors.ClusterError as failure:
            self._witness.failed(about, failure)
