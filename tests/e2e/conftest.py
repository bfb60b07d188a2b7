"""One stage for all whole runs: its own cluster, the operator with the chart's rights, two GPU nodes, a plain one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from examples.stage import Stage, fill_buckets
from localcluster.fixtures import wait_for_namespace


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    terminal: Any = request.config.pluginmanager.get_plugin("terminalreporter")
    capture: Any = request.config.pluginmanager.get_plugin("capturemanager")

    def say(message: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"e2e: {message}")

    with Stage(say=say) as made:
        fill_buckets(made, tmp_path_factory.mktemp("stage"))
        made.add_pool("spot", price="0.348")
        made.add_pool("sure", price="1.006", capacity="OnDemand", default=False)
        made.add_node("gpu-1", "spot", cloud="eks-karpenter", capacity_type="spot")
        made.add_node("gpu-2", "spot", cloud="eks-karpenter", capacity_type="spot")
        made.cluster.add_node("plain", cloud="generic", capacity_type="on-demand", pool="plain", gpus=0)
        yield made
        if request.session.testsfailed:
            say(f"the operator's last words:\n{made._log_end()}")


@pytest.fixture
def home(stage: Stage) -> Iterator[str]:
    """A fresh namespace with the bucket's credentials."""
    name = f"e2e-{secrets.token_hex(3)}"
    stage.cluster.kubectl("create", "namespace", name)
    wait_for_namespace(stage.cluster, name)
    stage.add_credentials(name)
    yield name
    stage.cluster.kubectl("delete", "lft", "--all", "-n", name, "--wait=false", "--ignore-not-found")
    stage.cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
