"""What stands in examples/ works as it is: the API server takes it, and its parts fit one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster.clouds import CLOUDS, GPU_TAINT
from localcluster.cluster import Cluster
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import runconfig

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))


def objects(kind: str | None = None, *paths: Path) -> list[dict[str, Any]]:
    found = [one for path in paths or FILES for one in yaml.safe_load_all(path.read_text()) if one]
    return [one for one in found if kind in (None, one["kind"])]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(EXAMPLES)) for path in FILES])
def test_the_api_server_takes_it(cluster: Cluster, crds: None, namespace: str, path: Path) -> None:
    for one in yaml.safe_load_all(path.read_text()):
        one["metadata"].pop("namespace", None)
        cluster.kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-",
            stdin=json.dumps(one),
        )  # fmt: skip


def test_the_examples_are_those_that_the_documents_name() -> None:
    assert {"minimal.yaml", "timber.yaml", "style.yaml", "class-images.yaml", "pools.yaml", "secret.yaml"} <= {
        path.name for path in FILES
    }


def test_runs_name_pools_and_secrets_that_are_there() -> None:
    pools = {one["metadata"]["name"]: one["spec"] for one in objects("GPUPool")}
    secrets = {one["metadata"]["name"]: one for one in objects("Secret")}
    runs = [one for path in FILES if path.parent == EXAMPLES for one in objects("LoRAFineTune", path)]
    assert len(runs) >= 4
    for one in runs:
        spec = LoRAFineTuneSpec.model_validate(one["spec"])
        assert spec.storage.credentials_secret in secrets
        for name in spec.placement.pools:
            assert pools[name]["capacityType"] == "Spot"
        for name in spec.placement.on_demand.pools if spec.placement.on_demand else []:
            assert pools[name]["capacityType"] == "OnDemand"
    assert [spec for spec in pools.values() if spec.get("default")]


def test_secrets_carry_the_label_and_no_true_key() -> None:
    found = objects("Secret")
    assert found
    for one in found:
        assert one["metadata"]["labels"]["lorafinetune.io/storage"] == "true"
        assert {runconfig.KEY_ID, runconfig.SECRET_KEY} <= set(one["stringData"])
        assert all(value.startswith("put-your-") for value in one["stringData"].values())


PRESETS = {"eks-managed": "eks-managed", "karpenter": "eks-karpenter", "gke": "gke", "aks": "aks", "salad": None}
"""Files in examples/pools, and which cloud of localcluster has the same labels and taints."""


def test_there_are_pools_for_these_clouds() -> None:
    assert {path.stem for path in (EXAMPLES / "pools").iterdir()} == set(PRESETS)


@pytest.mark.parametrize(("file", "cloud"), [(file, cloud) for file, cloud in PRESETS.items() if cloud is not None])
@pytest.mark.parametrize("capacity", ["Spot", "OnDemand"])
def test_pools_select_and_tolerate_the_nodes_of_their_cloud(file: str, cloud: str, capacity: str) -> None:
    """Labels that tell spot from on-demand, and every taint; which GPU, and AKS's node pool, are the user's to say."""
    own = CLOUDS[cloud]
    pools = [one["spec"] for one in objects("GPUPool", EXAMPLES / "pools" / f"{file}.yaml")]
    chosen = [one for one in pools if one["capacityType"] == capacity]
    assert chosen
    labels, others = own.spot_labels, own.on_demand_labels
    if capacity == "OnDemand":
        labels, others = others, labels
    taints = [GPU_TAINT, *(own.spot_taints if capacity == "Spot" else ())]
    for spec in chosen:
        selector = spec["nodeSelector"]
        assert not labels or selector.items() & labels.items(), "it selects this capacity"
        assert not selector.items() & others.items(), "and not the other"
        for taint in taints:
            assert any(
                one["key"] == taint.key
                and one.get("value", taint.value) == taint.value
                and one.get("effect", taint.effect) == taint.effect
                for one in spec["tolerations"]
            ), taint
