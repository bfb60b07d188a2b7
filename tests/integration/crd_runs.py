"""Runs and pools on a real API server, and a status with every field: what the tests of the definitions share."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config

from tests.manifests import GPUPOOL, changed

GROUP_VERSION = ("lorafinetune.io", "v1alpha1")
STRICT = {"field_validation": "Strict"}

STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Running",
    "message": "step 310 of 500 on spot-4090",
    "conditions": [
        {
            "type": "Running",
            "status": "True",
            "reason": "Training",
            "message": "attempt 3 trains",
            "lastTransitionTime": "2026-11-23T08:00:00Z",
            "observedGeneration": 1,
        }
    ],
    "startTime": "2026-11-23T07:51:00Z",
    "completionTime": "2026-11-23T08:11:00Z",
    "prefix": "s3://loras/default/timber-0a1b2c3d/",
    "attempt": 3,
    "attempts": [
        {
            "number": 3,
            "pod": "timber-0a1b2-3",
            "podUID": "9a0e7c4e-5f6b-4a57-9b86-0d6d0b0c3c11",
            "node": "gpu-1",
            "pool": "spot-4090",
            "capacityType": "Spot",
            "pricePerHour": "0.348",
            "onDemandPricePerHour": "1.006",
            "created": "2026-11-23T07:59:00Z",
            "queuedUntil": "2026-11-23T07:59:01Z",
            "dry": "2026-11-23T07:59:02Z",
            "scheduled": "2026-11-23T07:59:05Z",
            "startSeconds": 55,
            "machine": "5b1a7c9e/0f3d2c",
            "started": "2026-11-23T07:59:10Z",
            "ended": "2026-11-23T08:10:00Z",
            "fromStep": 200,
            "toStep": 310,
            "durableStep": 300,
            "generatingSince": "2026-11-23T07:59:20Z",
            "generatingUntil": "2026-11-23T08:01:20Z",
            "cause": "Preempted",
            "reason": "Evicted",
            "message": "gpu-1 was taken back",
            "exitCode": 143,
            "stopping": "Moved",
            "cost": "0.063",
            "lostSeconds": 20,
        }
    ],
    "totals": {
        "attempts": 1,
        "cost": "0.01",
        "onDemandCost": "0.03",
        "comparedCost": "0.01",
        "generatingCost": "0.002",
        "lost": [{"cause": "Preempted", "attempts": 1, "seconds": 30, "cost": "0.002"}],
        "infrastructure": 1,
        "withoutProgress": 2,
        "endedBy": "Preempted",
    },
    "lost": [{"cause": "Preempted", "attempts": 2, "seconds": 40, "cost": "0.004"}],
    "activity": "Training",
    "activitySince": "2026-11-23T08:00:00Z",
    "times": [{"activity": "NoNodeFits", "seconds": 540}],
    "moved": "2026-11-23T07:58:00Z",
    "limit": {
        "reason": "MaxCostReached",
        "message": "spec.limits.maxCost: 2.50 of 2.50",
        "time": "2026-11-23T08:05:00Z",
        "attempt": 2,
    },
    "onDemandCost": "$0.190",
    "saveSeconds": "0.8",
    "checkpointEvery": 50,
    "preemptions": 2,
    "preemptionsBefore": 1,
    "waitedBefore": 300,
    "failures": 0,
    "step": 310,
    "steps": 500,
    "stepOf": "310/500",
    "progress": "62%",
    "loss": "0.083",
    "pool": "spot-4090",
    "checkpoint": {
        "attempt": 3,
        "step": 300,
        "uri": "s3://loras/default/timber-0a1b2c3d/checkpoints/3-300/",
        "manifestSha256": "a" * 64,
        "time": "2026-11-23T08:09:00Z",
    },
    "artifact": {
        "uri": "s3://loras/default/timber-0a1b2c3d/artifacts/3/",
        "file": "pytorch_lora_weights.safetensors",
        "sha256": "b" * 64,
        "size": 23_000_000,
    },
    "pruned": True,
    "cost": "$0.041",
    "generatingCost": "$0.012",
    "saved": "65%",
    "eta": "5m",
    "secondsPerStep": "1.62",
    "imagesPerSecond": "2.47",
    "mfu": "22%",
    "memory": "13.0 GiB",
    "eventSequence": 99,
}
"""A status with every field that the schema has (a test below holds it to that)."""


class Runs:
    """The runs of one namespace, as an administrator sees them, with strict validation."""

    def __init__(self, api: client.CustomObjectsApi, namespace: str) -> None:
        self.namespace = namespace
        self._api, self._place = api, (*GROUP_VERSION, namespace, "lorafinetunes")

    def clear(self) -> None:
        self._api.delete_collection_namespaced_custom_object(*self._place)

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self._api.create_namespaced_custom_object(*self._place, body, **STRICT))

    def get(self, name: str) -> dict[str, Any]:
        return dict(self._api.get_namespaced_custom_object(*self._place, name))

    def replace(self, body: dict[str, Any]) -> dict[str, Any]:
        return dict(self._api.replace_namespaced_custom_object(*self._place, body["metadata"]["name"], body, **STRICT))

    def set(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        return self.replace(changed(self.get(name), changes))

    def write_status(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        body = self.get(name) | {"status": status}
        return dict(self._api.replace_namespaced_custom_object_status(*self._place, name, body, **STRICT))


@pytest.fixture(scope="module")
def home(cluster: Any, crds: None) -> Iterator[Runs]:
    """One namespace for all tests of this file: making one for each would take longer than the tests."""
    name = f"test-crd-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    yield Runs(client.CustomObjectsApi(config.new_client_from_config(str(cluster.kubeconfig))), name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def runs(home: Runs) -> Iterator[Runs]:
    yield home
    home.clear()


@pytest.fixture
def pool(cluster: Any, crds: None) -> Iterator[dict[str, Any]]:
    """One stored pool, with as few fields as a pool may have."""
    body = {
        **GPUPOOL,
        "metadata": {"name": "test-crd-pool"},
        "spec": {key: GPUPOOL["spec"][key] for key in ("capacityType", "nodeSelector", "pricePerHour")},
    }
    cluster.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(body))
    yield cluster.get("gpupool", "test-crd-pool")
    cluster.kubectl("delete", "gpupool", "test-crd-pool")
