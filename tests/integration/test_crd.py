"""The definitions on a real API server: defaults, columns, selectors, explain, and what may change after the start."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.kinds import GPUPOOL as POOL_KIND
from lorafinetune.api.kinds import LORAFINETUNE as RUN_KIND
from lorafinetune.api.render import manifest
from lorafinetune.api.status import LoRAFineTuneStatus
from tests.manifests import FINETUNE, GPUPOOL, MINIMAL, REMOVED, changed

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
            "started": "2026-11-23T07:59:10Z",
            "ended": "2026-11-23T08:10:00Z",
            "fromStep": 200,
            "toStep": 310,
            "durableStep": 300,
            "cause": "Preempted",
            "reason": "Evicted",
            "message": "gpu-1 was taken back",
            "exitCode": 143,
        }
    ],
    "totals": {"attempts": 1, "cost": "0.01", "onDemandCost": "0.03"},
    "preemptions": 2,
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
    "saved": "65%",
    "eta": "5m",
    "secondsPerStep": "1.62",
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


@pytest.mark.parametrize("kind", [RUN_KIND, POOL_KIND], ids=lambda kind: kind.kind)
def test_the_api_server_takes_and_keeps_all_of_the_definition(cluster: Any, crds: None, kind: Any) -> None:
    """What the server would silently drop (const, examples, ...) would be missing from what it stores."""
    cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=_renamed(manifest(kind)))
    wanted = yaml.safe_load(manifest(kind))["spec"]["versions"][0]
    stored = cluster.get("crd", kind.crd_name)["spec"]["versions"][0]
    assert stored["schema"] == wanted["schema"]
    assert stored["additionalPrinterColumns"] == wanted["additionalPrinterColumns"]
    assert stored.get("selectableFields") == wanted.get("selectableFields")


def _renamed(text: str) -> str:
    """Return the same definition for another group, since the true one may stand in the cluster already."""
    return text.replace("lorafinetune.io", "dry.lorafinetune.example")


def test_three_fields_are_enough_and_all_else_is_filled_in(runs: Runs) -> None:
    stored = runs.create(MINIMAL)["spec"]
    assert stored == {
        **MINIMAL["spec"],
        "training": {
            "steps": 500,
            "resolution": 1024,
            "learningRate": 1e-4,
            "schedule": "constant",
            "warmupSteps": 0,
            "batchSize": 1,
            "gradientAccumulation": 4,
            "weightDecay": 0.01,
            "maxGradNorm": 1,
            "precision": "bf16",
            "gradientCheckpointing": False,
            "seed": 0,
            "randomFlip": False,
            "lora": {"rank": 16},
        },
        "checkpoint": {"everySteps": 50, "keep": 2},
        "storage": {"uri": "s3://loras/", "onDelete": "KeepArtifact", "unsafeNoFencing": False},
        "suspend": False,
    }


def test_the_server_fills_in_what_the_models_fill_in(runs: Runs, pool: dict[str, Any]) -> None:
    """Two sources of defaults that differ would make the operator and `kubectl get` tell different stories."""
    stored = LoRAFineTuneSpec.model_validate(runs.create(MINIMAL)["spec"])
    assert stored == LoRAFineTuneSpec.model_validate(MINIMAL["spec"])
    assert GPUPoolSpec.model_validate(pool["spec"]) == GPUPoolSpec.model_validate(
        {key: GPUPOOL["spec"][key] for key in ("capacityType", "nodeSelector", "pricePerHour")}
    )


def test_half_filled_objects_get_the_rest_of_their_defaults(runs: Runs) -> None:
    changes: dict[str, Any] = {
        "spec.training": {"steps": 10, "lora": {"alpha": 8}},
        "spec.checkpoint": {},
        "spec.placement": {"onDemand": {"pools": ["od"]}},
    }
    spec = runs.create(changed(MINIMAL, changes))["spec"]
    assert (spec["training"]["resolution"], spec["training"]["lora"]) == (1024, {"alpha": 8, "rank": 16})
    assert spec["checkpoint"] == {"everySteps": 50, "keep": 2}
    assert spec["placement"]["onDemand"] == {"pools": ["od"], "afterPreemptions": 5}


def test_an_empty_section_of_yaml_is_an_absent_one(runs: Runs) -> None:
    """`training:` with nothing below it is null."""
    assert runs.create(changed(MINIMAL, {"spec.training": None}))["spec"]["training"]["steps"] == 500


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"spec.storage.uri": "s3://data/", "spec.dataset.source": "s3://data/x/"}, id="images below storage"
        ),
        pytest.param(
            {"spec.storage.uri": "s3://data/x2/", "spec.dataset.source": "s3://data/x"}, id="alike, not inside"
        ),
        pytest.param({"spec.dataset.source": "/data/images"}, id="images in the trainer's image"),
        pytest.param(
            {"spec.dataset.source": "s3://data/my photos/timber & co/"}, id="images below a prefix with blanks"
        ),
        pytest.param({"spec.baseModel.source": "s3://models/sdxl"}, id="base model in a bucket"),
        pytest.param({"spec.storage.endpoint": "http://[::1]:9000"}, id="endpoint by IPv6 address"),
        pytest.param({"spec.storage.endpoint": "http://minio.storage.svc:9000/"}, id="endpoint by service"),
        pytest.param({"spec.training": {"steps": 10}, "spec.checkpoint": {"everySteps": 50}}, id="short run"),
        pytest.param({"spec.dataset.instancePrompt": 'a "quoted"\nphoto of ünïcode 犬'}, id="any prompt"),
        pytest.param({"metadata.name": "x" * 63}, id="longest name"),
        pytest.param({"spec.training": {"learningRate": 1, "maxGradNorm": 1}}, id="whole numbers"),
        pytest.param({"spec.placement": {}}, id="empty placement"),
        pytest.param({"spec.placement": {"pools": []}}, id="no pools"),
    ],
)
def test_unusual_but_right(runs: Runs, changes: dict[str, Any]) -> None:
    stored = runs.create(changed(MINIMAL, changes))
    LoRAFineTuneSpec.model_validate(stored["spec"])


def test_status_round_trips_with_no_field_lost(runs: Runs) -> None:
    runs.create(MINIMAL)
    written = LoRAFineTuneStatus.model_validate(STATUS)
    stored = runs.write_status("minimal", written.to_json())["status"]
    assert stored == STATUS
    assert LoRAFineTuneStatus.model_validate(stored) == written
    schema = yaml.safe_load(manifest(RUN_KIND))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert _missing(STATUS, schema["properties"]["status"], "status") == []


def _missing(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Return the fields of the schema that the example does not have."""
    if schema["type"] == "array":
        return _missing(value[0], schema["items"], f"{path}[0]") if "properties" in schema["items"] else []
    found = []
    for name, field in schema.get("properties", {}).items():
        found += _missing(value[name], field, f"{path}.{name}") if name in value else [f"{path}.{name}"]
    return found


def test_status_is_no_part_of_a_plain_write(runs: Runs) -> None:
    assert "status" not in runs.create({**MINIMAL, "status": {"phase": "Succeeded"}})


EDITS = [
    ("spec.baseModel.source", "hf://someone/else"),
    ("spec.baseModel.revision", REMOVED),
    ("spec.baseModel.vae", "hf://someone/vae"),
    ("spec.dataset.source", "s3://training-data/other/"),
    ("spec.dataset.instancePrompt", REMOVED),
    ("spec.training.resolution", 512),
    ("spec.training.learningRate", 2e-4),
    ("spec.training.schedule", "cosine"),
    ("spec.training.warmupSteps", 5),
    ("spec.training.batchSize", 2),
    ("spec.training.gradientAccumulation", 1),
    ("spec.training.weightDecay", 0),
    ("spec.training.maxGradNorm", 2),
    ("spec.training.precision", "fp16"),
    ("spec.training.gradientCheckpointing", True),
    ("spec.training.seed", 1),
    ("spec.training.randomFlip", True),
    ("spec.training.lora", {"rank": 8, "alpha": 16}),
    ("spec.training.steps", 499),
    ("spec.storage.uri", "s3://loras/other/"),
    ("spec.storage.endpoint", REMOVED),
    ("spec.storage.region", "eu-central-1"),
    ("spec.storage.unsafeNoFencing", True),
]

ALWAYS = [
    ("spec.training.steps", 501),
    ("spec.checkpoint", {"everySteps": 10, "keep": 5}),
    ("spec.placement", {"pools": ["other"]}),
    ("spec.placement", REMOVED),
    ("spec.suspend", True),
    ("spec.storage.onDelete", "DeleteAll"),
    ("spec.storage.credentialsSecret", "other"),
    ("spec.storage.credentialsSecret", REMOVED),
    ("spec.baseModel.credentialsSecret", "other"),
    ("metadata.labels", {"team": "timber"}),
]


@pytest.fixture
def stored(runs: Runs) -> Callable[[bool], dict[str, Any]]:
    def make(started: bool) -> dict[str, Any]:
        runs.create(FINETUNE)
        return runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z", "phase": "Running"} if started else {})

    return make


@pytest.mark.parametrize(("path", "value"), EDITS, ids=[path for path, _ in EDITS])
def test_the_mathematics_may_change_until_the_start_and_not_after(
    runs: Runs, stored: Callable[[bool], dict[str, Any]], path: str, value: Any
) -> None:
    before = stored(False)
    runs.set("timber", {path: value})
    runs.set("timber", {"spec": before["spec"]})
    runs.write_status("timber", STATUS)
    with pytest.raises(client.ApiException) as refused:
        runs.set("timber", {path: value})
    [cause] = json.loads(refused.value.body)["details"]["causes"]
    assert cause["field"] == path
    assert path in cause["message"]
    assert "once the run has started: set it back" in cause["message"]


@pytest.mark.parametrize(("path", "value"), ALWAYS, ids=[f"{path} {number}" for number, (path, _) in enumerate(ALWAYS)])
def test_what_may_change_at_any_time(
    runs: Runs, stored: Callable[[bool], dict[str, Any]], path: str, value: Any
) -> None:
    runs.replace(changed(stored(True), {path: value}))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_steps_cannot_be_raised_under_a_schedule_that_looks_at_the_end(runs: Runs, schedule: str) -> None:
    runs.create(changed(FINETUNE, {"spec.training.schedule": schedule}))
    runs.set("timber", {"spec.training.steps": 600})
    runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z"})
    with pytest.raises(client.ApiException, match="linear or cosine"):
        runs.set("timber", {"spec.training.steps": 700})


def test_steps_cannot_be_raised_after_the_end(runs: Runs, stored: Callable[[bool], dict[str, Any]]) -> None:
    stored(True)
    runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z", "completionTime": "2026-11-23T07:59:00Z"})
    with pytest.raises(client.ApiException, match="once the run has ended"):
        runs.set("timber", {"spec.training.steps": 700})


def test_every_frozen_or_editable_field_is_in_one_of_the_two_tables() -> None:
    """A field that is added to the models must be put on one side, and tested there."""
    sections = {"baseModel": 4, "dataset": 2, "training": 14, "storage": 6}
    schema = yaml.safe_load(manifest(RUN_KIND))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "spec"
    ]
    covered = {path for path, _ in EDITS + ALWAYS}
    fields = {f"spec.{section}.{name}" for section in sections for name in schema["properties"][section]["properties"]}
    assert len(fields) == sum(sections.values())
    assert fields - covered == set()


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
    assert header.split() == ["NAME", "CAPACITY", "PRICE", "GPU", "DEFAULT", "AGE"]
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
        ("lft.spec.training.steps", "From 1 to 1000000. Default: 500."),
        ("lft.spec.storage.onDelete", "KeepArtifact (the final LoRA) or DeleteAll (nothing)"),
        ("lft.status.attempts.podUID", "UID of the pod"),
        ("gpool.spec.tolerations.operator", "Exists (any value) or Equal"),
    ],
)
def test_explain_is_documentation(cluster: Any, crds: None, path: str, words: str) -> None:
    assert words in " ".join(cluster.kubectl("explain", path).split())
