"""The definitions on a real API server: taken whole, defaults filled in, status kept."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.kinds import GPUPOOL as POOL_KIND
from lorafinetune.api.kinds import LORAFINETUNE as RUN_KIND
from lorafinetune.api.render import manifest
from lorafinetune.api.status import LoRAFineTuneStatus
from tests.integration.crd_runs import STATUS, Runs
from tests.manifests import GPUPOOL, MINIMAL, changed


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


LORA = {
    "rank": 16,
    "targets": "Attention",
    "rsLora": False,
    "dora": False,
    "textEncoder": False,
    "dropout": 0,
}


def test_three_fields_are_enough_and_all_else_is_filled_in(runs: Runs) -> None:
    stored = runs.create(MINIMAL)["spec"]
    assert stored == {
        **MINIMAL["spec"],
        "baseModel": {**MINIMAL["spec"]["baseModel"], "cache": True},
        "dataset": {**MINIMAL["spec"]["dataset"], "keepClassImages": False},
        "training": {
            "resolution": 1024,
            "aspectBuckets": True,
            "randomCrop": False,
            "randomFlip": False,
            "captions": {"shuffle": False, "keepTokens": 0, "dropout": 0},
            "priorLossWeight": 1,
            "optimizer": "AdamW",
            "schedule": "constant",
            "scheduleCycles": 1,
            "schedulePower": 2,
            "warmupSteps": 0,
            "batchSize": 1,
            "gradientAccumulation": 4,
            "weightDecay": 0.01,
            "maxGradNorm": 1,
            "noiseOffset": 0,
            "zeroTerminalSnr": False,
            "precision": "bf16",
            "gradientCheckpointing": False,
            "compile": False,
            "seed": 0,
            "lora": LORA,
        },
        "metrics": {"tensorBoard": False},
        "checkpoint": {"keep": 2},
        "storage": {"uri": "s3://loras/", "onDelete": "KeepArtifact", "unsafeNoFencing": False},
        "placement": {"order": "AsListed", "returnToSpot": True},
        "limits": {
            "attempts": {"infrastructure": 6, "trainingErrors": 1, "outOfMemory": 1, "withoutProgress": 12},
            "atLimit": "Fail",
        },
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
    assert (spec["training"]["resolution"], spec["training"]["lora"]) == (1024, LORA | {"alpha": 8})
    assert spec["checkpoint"] == {"keep": 2}
    assert spec["placement"]["onDemand"] == {"pools": ["od"]}


def test_an_empty_section_of_yaml_is_an_absent_one(runs: Runs) -> None:
    """`training:` with nothing below it is null."""
    assert runs.create(changed(MINIMAL, {"spec.training": None}))["spec"]["training"]["resolution"] == 1024


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
        pytest.param(
            {"spec.training": {"optimizer": "Prodigy", "learningRate": 1, "maxGradNorm": 1}}, id="whole numbers"
        ),
        pytest.param({"spec.training": {"epochs": 10, "warmupSteps": 5000}}, id="epochs, whose steps nobody knows"),
        pytest.param({"spec.training": {"zeroTerminalSnr": True}}, id="prediction as the scheduler says"),
        pytest.param(
            {"spec.baseModel": {"source": "hf://owner/name/folder/ponyDiffusion V6.safetensors", "revision": "main"}},
            id="one file on the hub",
        ),
        pytest.param(
            {"spec.baseModel": {"source": "s3://models/juggernaut.safetensors", "vae": "/models/vae.safetensors"}},
            id="one file in a bucket",
        ),
        pytest.param({"spec.baseModel.source": "/models/ckpt/sdxl.bin.d"}, id="folder that only sounds like a pickle"),
        pytest.param({"spec.dataset.classSource": "s3://training-data/timber-class/"}, id="classes beside"),
        pytest.param(
            {
                "spec.dataset.classPrompt": "photo of a dog",
                "spec.dataset.classImages": 200,
                "spec.dataset.keepClassImages": True,
                "spec.training": {"priorLossWeight": 0.5},
            },
            id="class images to make",
        ),
        pytest.param(
            {
                "spec.training": {
                    "lora": {
                        "dora": True,
                        "rsLora": True,
                        "textEncoder": True,
                        "dropout": 0.0,
                        "targets": "All",
                        "initFrom": "s3://loras/default/old-0a1b2c3d/artifacts/1/x.safetensors",
                    }
                }
            },
            id="all of an adapter",
        ),
        pytest.param({"spec.validation": {"prompts": ["a dog, a cat"]}}, id="one picture"),
        pytest.param(
            {"spec.validation": {"prompts": ["犬\n"] * 8, "everySteps": 10}, "spec.training": {"steps": 640}},
            id="as many pictures as can be",
        ),
        pytest.param({"spec.checkpoint": {"keepIntermediate": {"steps": [500, 100]}}}, id="chosen steps"),
        pytest.param(
            {"spec.checkpoint": {"keepIntermediate": {"everySteps": 10}}, "spec.training": {"steps": 640}},
            id="as many LoRAs as can be",
        ),
        pytest.param(
            {"spec.checkpoint": {"keepIntermediate": {"everySteps": 10}}}, id="LoRAs of steps that nobody knows yet"
        ),
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
