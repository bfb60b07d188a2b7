"""Pytest fixtures over real clusters. `tests/conftest.py` loads this as a plugin.

- `cluster` (session): one control plane and S3 server, no nodes; shared by all tests that do not break it.
- `namespace` (function): a fresh namespace's name, in which pods can be made; deleted afterwards.

Programs that are missing are built first, with progress on the terminal; nothing is skipped for want of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from localcluster.cluster import Cluster
from localcluster.waiting import eventually

ACCOUNT_SECONDS = 90.0
"""Enough for a busy machine on which the controller manager has only just begun."""


def wait_for_namespace(cluster: Cluster, name: str) -> None:
    """Wait until the controllers have given a new namespace what pods need. Raises TimeoutError."""
    wanted = ("serviceaccount/default", "configmap/kube-root-ca.crt")

    def present() -> bool:
        found = cluster.kubectl("get", *wanted, "-n", name, "-o", "name", check=False)
        return all(one in found for one in wanted)

    eventually(present, ACCOUNT_SECONDS, f"namespace {name} has its service account and its CA bundle")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Yield a running cluster without nodes."""
    terminal: Any = request.config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = request.config.pluginmanager.get_plugin("capturemanager")

    def say(message: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"localcluster: {message}")

    made = Cluster(say=say)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Yield the name of a fresh namespace in which pods can be made."""
    name = f"t-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    wait_for_namespace(cluster, name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
