"""The chart's life on an empty cluster of its own: install, upgrade, uninstall, and what each leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from localcluster.cluster import Cluster
from localcluster.waiting import eventually
from tests.chart.helm import CHART, helm
from tests.manifests import GPUPOOL, MINIMAL

SPOT = GPUPOOL["spec"]


@pytest.fixture(scope="module")
def empty() -> Iterator[Cluster]:
    """A cluster that has never seen our kinds: what the first install meets."""
    with Cluster() as made:
        yield made


def pools(cluster: Cluster) -> dict[str, str]:
    return {one["metadata"]["name"]: one["spec"]["pricePerHour"] for one in cluster.get("gpupools")["items"]}


def test_install_upgrade_uninstall(empty: Cluster) -> None:
    def run(*arguments: str, **values: Any) -> str:
        return helm(*arguments, kubeconfig=empty.kubeconfig, values=values)

    place = ("lft", str(CHART), "--namespace", "lft", "--create-namespace")
    notes = run("install", *place, pools={"spot": SPOT, "old": SPOT})
    assert "kubectl get lft -w" in notes
    assert pools(empty) == {"spot": "0.348", "old": "0.348"}
    empty.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(MINIMAL))

    # The first upgrade takes over the pools that the install had to make in a hook; from then on they come and go.
    run("upgrade", *place, pools={"spot": SPOT | {"pricePerHour": "0.4"}, "old": SPOT})
    assert pools(empty) == {"spot": "0.4", "old": "0.348"}
    run("upgrade", *place, pools={"spot": SPOT | {"pricePerHour": "0.4"}})
    assert pools(empty) == {"spot": "0.4"}
    assert "annotations" not in json.dumps(empty.get("gpupool", "spot")["metadata"].get("annotations", {}))

    # The view and edit roles of the cluster cover runs.
    account = "--as=someone"
    empty.kubectl("create", "rolebinding", "edit", "--clusterrole=edit", "--user=someone", "-n", "default")

    def may_edit() -> bool:
        return "yes" in empty.kubectl("auth", "can-i", "delete", "lft", account, "-n", "default", check=False)

    eventually(may_edit, 30, "the controller has put our rights into the role edit")
    assert "no" in empty.kubectl("auth", "can-i", "delete", "gpupools", account, check=False)

    # Uninstall leaves the definitions and every run.
    run_names = ("clusterroles", "clusterrolebindings", "deployments", "services", "serviceaccounts", "gpupools")
    helm("uninstall", "lft", "--namespace", "lft", kubeconfig=empty.kubeconfig)
    left = [
        empty.kubectl("get", kind, "-A", "-l", "app.kubernetes.io/instance=lft", "-o", "name") for kind in run_names
    ]
    assert "".join(left) == ""
    assert empty.get("lft", "minimal")["spec"]["storage"]["uri"] == "s3://loras/"

    # Installed again, it takes back what it left.
    run("install", *place, crds={"install": True, "keep": False})
    assert empty.get("lft", "minimal")["metadata"]["name"] == "minimal"
    helm("uninstall", "lft", "--namespace", "lft", kubeconfig=empty.kubeconfig)

    def gone() -> bool:
        return "lorafinetune" not in empty.kubectl("get", "crds", "-o", "name")

    eventually(gone, 30, "the definitions, no longer kept, have gone with the chart")
