"""A node that only looks alive: its Lease is renewed, and nobody runs its pods."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator

import pytest

from lorafinetune.kube.client import LEASES, NODES, Cluster
from tests.integration.operator.world import NODE

RENEW = 3.0
PLACE = "kube-node-lease"


@pytest.fixture
async def hollow(api: Cluster, crds: None) -> AsyncIterator[str]:
    """Keep the node of all worlds; without it the controllers would clear away its pods."""
    taint = {"key": "hollow", "effect": "NoSchedule"}
    ready = {"type": "Ready", "status": "True", "reason": "Hollow", "lastTransitionTime": _now(seconds=True)}
    node = {"metadata": {"name": NODE}, "spec": {"taints": [taint]}, "status": {"conditions": [ready]}}
    await api.create(NODES, {"apiVersion": "v1", "kind": "Node", **node})
    renewing = asyncio.create_task(_renew(api))
    yield NODE
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)
    await api.delete(NODES, NODE)


async def _renew(api: Cluster) -> None:
    while True:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NODE, "namespace": PLACE},
            "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": _now()},
        }
        await api.apply(LEASES, body, manager="hollow-kubelet")
        await asyncio.sleep(RENEW)


def _now(*, seconds: bool = False) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ" if seconds else "%Y-%m-%dT%H:%M:%S.%fZ")
