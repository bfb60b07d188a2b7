"""What the tests of this folder share beside the cluster itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lorafinetune.kube.client import Cluster
from tests.crds import crds

__all__ = ["crds"]


@pytest.fixture
async def api(cluster: Any) -> AsyncIterator[Cluster]:
    """The operator's hands on the cluster, as its administrator."""
    connection = await Cluster.connect(str(cluster.kubeconfig))
    yield connection
    await connection.close()
