"""What the tests of this folder share beside the cluster itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lorafinetune.kube.client import Cluster
from tests.crds import crds
from tests.integration.crd_runs import home, pool, runs
from tests.integration.room import NODE, Room

__all__ = ["crds", "home", "pool", "runs"]


@pytest.fixture
async def api(cluster: Any) -> AsyncIterator[Cluster]:
    """The operator's hands on the cluster, as its administrator."""
    connection = await Cluster.connect(str(cluster.kubeconfig))
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def node(cluster: Any) -> Iterator[str]:
    """A node with two GPUs whose projected tokens are renewed after half a second instead of eight minutes."""
    yield cluster.add_node(NODE, gpus=2, token_refresh_fraction=0.5 / 600)
    cluster.remove_node(NODE)


@pytest.fixture
def room(cluster: Any, namespace: str, node: str) -> Room:
    """A fresh namespace for pods on that node."""
    return Room(cluster, namespace)
