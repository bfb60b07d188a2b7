"""TEMPORARY, until localcluster brings these two fixtures."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest
from localcluster.cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with Cluster() as one:
        yield one


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"t-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    deadline = time.monotonic() + 30
    while "default" not in cluster.kubectl("get", "serviceaccount", "--namespace", name, "--output", "name"):
        assert time.monotonic() < deadline, "the controller manager made no service account in 30 s"
        time.sleep(0.05)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
