"""What the parts of a node share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from localcluster.api import Api, ApiError, Json
from localcluster.node.recorder import Recorder
from localcluster.nodespec import AgentConfig


@dataclass(slots=True)
class NodeContext:
    """One node's means: its configuration, its identity at the API server, its event recorder."""

    config: AgentConfig
    api: Api
    recorder: Recorder
    shutting_down: asyncio.Event = field(default_factory=asyncio.Event)
    gpus_in_use: Callable[[str], int] = lambda uid: 0
    """How many GPUs the pods other than this one hold."""

    @property
    def directory(self) -> Path:
        """Where the node keeps its pods and logs."""
        return Path(self.config.directory)

    async def fetch(self, namespace: str, kind: str, name: str) -> Json | None:
        """Read a ConfigMap or Secret as the node may; None where it is missing (or not yet known to be ours)."""
        try:
            return await self.api.get(f"/api/v1/namespaces/{namespace}/{kind}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
