"""What a node is asked to be, and what its agent is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SPOT, ON_DEMAND = "spot", "on-demand"


@dataclass(frozen=True, slots=True)
class Taint:
    """A node's taint."""

    key: str
    value: str
    effect: str

    @classmethod
    def parse(cls, text: str) -> Taint:
        """Read `key=value:Effect` or `key:Effect`. Raises ValueError."""
        head, colon, effect = text.rpartition(":")
        key, _, value = head.partition("=")
        if not colon or not key or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
            raise ValueError(f"taint {text!r}: write key=value:NoSchedule (or :PreferNoSchedule, :NoExecute)")
        return cls(key, value, effect)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node as a person asks for it."""

    name: str
    cloud: str = "generic"
    """The cloud that it plays: a name in `localcluster.clouds`."""
    capacity_type: str = ON_DEMAND
    """`spot` or `on-demand`."""
    pool: str = "default"
    gpus: int = 0
    product: str = "RTX-4090"
    """The value of `nvidia.com/gpu.product`, on nodes with GPUs."""
    gpu_memory_gib: int = 24
    cpus: int = 16
    memory_gib: int = 64
    zone: str = "local-a"
    labels: Mapping[str, str] = field(default_factory=dict)
    """Added to those of the cloud; an empty value removes the cloud's label."""
    taints: tuple[str, ...] = ()
    """Added to those of the cloud, each as `key=value:Effect`."""
    routes: tuple[str, ...] = ()
    """`host:port` addresses that this node's pods reach through the node, so that `cut` can cut them too."""
    token_refresh_fraction: float = 0.8
    """Projected tokens are renewed after this part of their life (a kubelet's value); tests cannot wait 8 minutes."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All that a node's agent is told, in a file; written by the supervisor."""

    name: str
    directory: str
    kubeconfig: str
    """The node's own credentials, at the node's link."""
    api_host: str
    api_port: int
    """Where pods find the API server."""
    port: int
    """The port on which the agent serves logs; the API server comes through `advertised_port`."""
    advertised_port: int
    certificate: str
    key: str
    authority: str
    images: str
    labels: dict[str, str]
    taints: list[dict[str, str]]
    capacity: dict[str, str]
    provider_id: str
    finalizers: list[str]
    routes: dict[str, str]
    """Addresses as pods are told them, to where they are reached through this node."""
    token_refresh_fraction: float
    version: str
    """The Kubernetes version that the node shows, as `v1.36.3`."""
    architecture: str

    def write(self, path: Path) -> None:
        """Write it for the agent."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> AgentConfig:
        """Read what the supervisor has written."""
        found: dict[str, Any] = json.loads(path.read_text())
        return cls(**found)
