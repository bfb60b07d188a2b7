"""The front door: kopf's stream of our own resource, copied into a store. No handler decides anything.

kopf re-lists after a break but never tells of what vanished meanwhile; a run cannot vanish while our finalizer holds
it, and one that was torn away is found missing by the next write to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kopf

from lorafinetune.api import GROUP, VERSION
from lorafinetune.kube.reflector import trim
from lorafinetune.kube.stateless import NoDifference, NoProgress
from lorafinetune.kube.store import Change, Store


def registry(store: Store, changed: Callable[[Change], None]) -> kopf.OperatorRegistry:
    """Return kopf's handlers: every event of a run goes into *store*, and *changed* is told."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.startup(registry=handlers)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.peering.standalone = True  # another kopf operator's peering object must not pause ours
        settings.posting.enabled = False
        settings.scanning.disabled = True  # else kopf wants to list namespaces and CRDs
        settings.watching.chunk_size = 500
        settings.watching.initial_streaming = False  # servers without it answer 500, and kopf dies
        settings.watching.server_timeout = 600
        settings.watching.client_timeout = 660
        settings.networking.connect_timeout = 5
        settings.networking.request_timeout = 30
        settings.networking.error_backoffs = [0.2, 0.5, 1, 2, 5, 10]
        settings.persistence.diffbase_storage = NoDifference()
        settings.persistence.progress_storage = NoProgress()
        settings.persistence.finalizer = f"{GROUP}/kopf"  # never used: there is no on.delete

    @kopf.on.login(registry=handlers)
    def log_in(**about: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**about) or kopf.login_with_kubeconfig(**about)

    @kopf.on.event(GROUP, VERSION, "lorafinetunes", registry=handlers)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        # A coroutine: kopf runs plain functions in threads, and neither store nor queue may be touched from one.
        thing: dict[str, Any] = dict(event["object"])
        thing["metadata"] = dict(thing["metadata"])
        change = store.take(event["type"] or "ADDED", trim(thing))
        if change is not None:
            changed(change)

    return handlers
