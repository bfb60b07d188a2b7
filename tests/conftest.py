"""What all tests share: a real cluster and fresh namespaces in it (see `localcluster.fixtures`), and the last word."""

from __future__ import annotations

import pytest

pytest_plugins = ["localcluster.fixtures"]

NOT_RUN = (
    ("a GPU", "these tests run on the CPU; nothing here needs or uses CUDA"),
    (
        "the real SDXL weights and the Hugging Face hub",
        "no network: a tiny SDXL of real parts is built, the hub is asked on loopback",
    ),
    ("real kubelets and containers", "nodes are processes of localcluster, which say where they differ from a kubelet"),
    (
        "stores other than versitygw",
        "S3, R2, MinIO and Ceph cannot be had here; each run probes its store before it starts",
    ),
)


LEFT = pytest.StashKey[int]()
"""How many tests were left for make test-long."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long ones out, unless an expression of markers says what is wanted."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long") is not None]
    config.stash[LEFT] = len(long)
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item.get_closest_marker("long") is None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what no test here has touched, and why; a test that is skipped says so itself."""
    terminalreporter.section("not tested here")
    if left := config.stash.get(LEFT, 0):
        terminalreporter.write_line(
            f"{left} LONG TESTS were left for make test-long: the big matrices of kills and faults"
        )
    for what, why in NOT_RUN:
        terminalreporter.write_line(f"{what}: {why}")
