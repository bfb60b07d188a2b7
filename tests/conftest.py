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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what no test here has touched, and why; a test that is skipped says so itself."""
    terminalreporter.section("not tested here")
    for what, why in NOT_RUN:
        terminalreporter.write_line(f"{what}: {why}")
