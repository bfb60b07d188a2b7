"""The fixture `crds`: our definitions, as checked in, on the shared cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.cluster import Cluster

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> None:
    """Apply crds/ and wait until the API server serves them."""
    cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", ROOT / "crds" / "gpupools.yaml",
        "-f", ROOT / "crds" / "lorafinetunes.yaml",
    )  # fmt: skip
    names = ("crd/gpupools.lorafinetune.io", "crd/lorafinetunes.lorafinetune.io")
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")
