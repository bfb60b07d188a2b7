"""The definitions as kubectl shows them: columns, selectors, conditions to wait for, and explanations."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.crd_runs import STATUS, Runs
from tests.manifests import FINETUNE, MINIMAL, changed


def test_columns_are_those_of_the_design(cluster: Any, runs: Runs, pool: dict[str, Any]) -> None:
    runs.create(FINETUNE)
    runs.write_status("timber", STATUS)
    header, row = cluster.kubectl("get", "lft", "-n", runs.namespace).splitlines()
    assert header.split() == [
        "NAME",
        "PHASE",
        "PROGRESS",
        "STEP",
        "LOSS",
        "POOL",
        "PREEMPTIONS",
        "COST",
        "SAVED",
        "ETA",
        "AGE",
    ]
    assert row.split()[:-1] == ["timber", "Running", "62%", "310/500", "0.083", "spot-4090", "2", "$0.041", "65%", "5m"]
    header, row = cluster.kubectl("get", "lft", "-n", runs.namespace, "-o", "wide").splitlines()
    assert header.split()[-4:] == ["AGE", "ATTEMPT", "CHECKPOINT", "MESSAGE"]
    assert row.split("   ")[-1].strip() == STATUS["message"]
    header, row = cluster.kubectl("get", "gpool", "test-crd-pool").splitlines()
    assert header.split() == ["NAME", "CAPACITY", "PRICE", "GPU", "DEFAULT", "STATE", "LIVE", "AGE"]
    assert row.split()[:-1] == ["test-crd-pool", "Spot", "0.348", "false"]


def test_category(cluster: Any, runs: Runs, pool: dict[str, Any]) -> None:
    runs.create(MINIMAL)
    named = cluster.kubectl("get", "ml", "-n", runs.namespace, "-o", "name").split()
    assert named == ["gpupool.lorafinetune.io/test-crd-pool", "lorafinetune.lorafinetune.io/minimal"]


def test_selectable_fields(cluster: Any, runs: Runs) -> None:
    runs.create(FINETUNE)
    runs.write_status("timber", STATUS)
    runs.create(changed(MINIMAL, {"spec.suspend": True}))

    def names(selector: str) -> list[str]:
        return cluster.kubectl("get", "lft", "-n", runs.namespace, "--field-selector", selector, "-o", "name").split()

    timber, minimal = "lorafinetune.lorafinetune.io/timber", "lorafinetune.lorafinetune.io/minimal"
    assert names("status.phase=Running") == [timber]
    assert names("status.pool=spot-4090") == [timber]
    assert names("spec.suspend=true") == [minimal]
    assert names("spec.suspend=false") == [timber]


def test_wait_for_a_condition(cluster: Any, runs: Runs) -> None:
    runs.create(MINIMAL)
    runs.write_status("minimal", STATUS)
    cluster.kubectl("wait", "--for=condition=Running", "lft/minimal", "-n", runs.namespace, "--timeout=5s")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("lft", "goes on from its last checkpoint whenever a node is taken away"),
        ("lft.spec.training.steps", "each image is shown about 100 times, in 300 to 3000 steps. From 1 to 1000000."),
        ("lft.spec.storage.onDelete", "KeepArtifact (the final LoRA) or DeleteAll (nothing)"),
        ("lft.status.attempts.podUID", "UID of the pod"),
        ("gpool.spec.tolerations.operator", "Exists (any value) or Equal"),
    ],
)
def test_explain_is_documentation(cluster: Any, crds: None, path: str, words: str) -> None:
    assert words in " ".join(cluster.kubectl("explain", path).split())
