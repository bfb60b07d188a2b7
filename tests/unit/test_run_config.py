"""From what users write to what an attempt is told: nothing is lost on the way, and it always fits."""

from __future__ import annotations

from typing import Any

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.schema import structural
from lorafinetune.contract import canonical, runconfig
from lorafinetune.engine.decision import CreatePod
from lorafinetune.engine.observation import RunSeen
from lorafinetune.kube import pods
from tests.unit.engine.given import pool

RUN = RunSeen("n" * 63, "r" * 63, "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0", 1, 0.0, has_finalizer=True)
TRAINER = pods.Trainer(image="trainer", webhook_url="https://operator.svc:8443", webhook_ca="c" * 4096)
WIDE = "\U0001d54f"
SECTIONS = ("baseModel", "dataset", "training", "checkpoint", "validation", "metrics")

FULL: dict[str, Any] = {
    "baseModel": {
        "source": "hf://owner/name/pony.safetensors",
        "revision": "main",
        "vae": "hf://owner/vae",
        "cache": False,
        "credentialsSecret": "hub",
    },
    "dataset": {
        "source": "s3://data/timber/",
        "instancePrompt": "photo of timberdog",
        "classSource": "s3://data/dogs/",
        "classPrompt": "photo of a dog",
        "classImages": 12,
        "keepClassImages": True,
    },
    "training": {
        "epochs": 7,
        "optimizer": "Prodigy",
        "textEncoderLearningRate": 0.5,
        "schedule": "cosineWithRestarts",
        "scheduleCycles": 3,
        "captions": {"shuffle": True, "keepTokens": 1, "dropout": 0.1},
        "lora": {"rank": 32, "dora": True, "textEncoder": True, "initFrom": "/loras/old.safetensors"},
    },
    "checkpoint": {"everySteps": 10, "keep": 3, "keepIntermediate": {"everySteps": 100}},
    "validation": {
        "prompts": ["a dog", "a cat"],
        "negativePrompt": "blur",
        "everySteps": 20,
        "inferenceSteps": 30,
        "guidance": 6.5,
        "seed": 9,
    },
    "metrics": {"tensorBoard": True},
    "storage": {"uri": "s3://loras/"},
}
"""A spec in which no field that concerns an attempt is absent (but for those of training: it is one model in both)."""


def absent(value: Any, model: Any, path: str) -> list[str]:
    """Return the fields of a model that an example leaves out."""
    fields = {one.alias: one for one in model.model_fields.values()}
    return [f"{path}.{name}" for name in fields if name not in value]


def test_the_example_has_every_field() -> None:
    spec = LoRAFineTuneSpec.model_validate(FULL)
    for section in (spec.base_model, spec.dataset, spec.checkpoint, spec.validation, spec.metrics):
        name = type(section).__name__
        value = next(FULL[one] for one in SECTIONS if one.lower() in name.lower())
        assert absent(value, type(section), name) == []


def test_every_field_reaches_the_attempt() -> None:
    spec = LoRAFineTuneSpec.model_validate(FULL)
    told, said = pods.run_config(RUN, spec, TRAINER).to_json(), spec.to_json()
    for section in SECTIONS:
        wanted = {name: value for name, value in said[section].items() if name != "credentialsSecret"}
        given = {name: value for name, value in told[section].items() if name != "hubCredentials"}
        if section == "checkpoint":
            given["keepIntermediate"].pop("steps")  # an empty list there, absent here
        assert given == wanted, section
    assert told["baseModel"]["hubCredentials"] == runconfig.HUB_CREDENTIALS


def test_what_the_operator_adds_reaches_the_attempt() -> None:
    spec = LoRAFineTuneSpec.model_validate(FULL)
    create = CreatePod(1, "spot", pool(), None, None, lifetime_seconds=1800.0, publish=True)
    container = pods.build(RUN, spec, create, TRAINER)["spec"]["containers"][0]
    value = next(one["value"] for one in container["env"] if one["name"] == runconfig.ENV_RUN_CONFIG)
    told = runconfig.RunConfig.model_validate_json(value)
    assert (told.checkpoint.lifetime_seconds, told.publish) == (1800.0, True)
    plain = pods.run_config(RUN, spec, TRAINER)
    assert (plain.checkpoint.lifetime_seconds, plain.publish) == (None, False)


def test_what_is_absent_stays_so() -> None:
    small = {name: FULL[name] for name in ("dataset", "storage")} | {"baseModel": {"source": "/models/sdxl"}}
    told = pods.run_config(RUN, LoRAFineTuneSpec.model_validate(small), TRAINER)
    assert (told.validation, told.checkpoint.keep_intermediate, told.training.steps) == (None, None, None)
    assert told.base_model.cache
    assert not told.metrics.tensor_board


def longest(path: str) -> str:
    """Return a text as long as the API server lets that field of the spec be, in characters of four bytes each."""
    schema = structural(LoRAFineTuneSpec)
    for name in path.split("."):
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return WIDE * int(schema["maxLength"])


def place(path: str) -> str:
    """Return the longest path of a .safetensors file for that field."""
    name = "/model.safetensors"
    return "/" + longest(path)[: -len(name) - 1] + name


def test_the_largest_run_config_fits_into_its_variable() -> None:
    """With an authority of 4 KiB beside it."""
    largest = FULL | {
        "baseModel": {
            "source": place("baseModel.source"),
            "vae": place("baseModel.vae"),
            "revision": "r" * len(longest("baseModel.revision")),
            "credentialsSecret": "hub",
        },
        "dataset": {
            "source": place("dataset.source"),
            "classSource": place("dataset.classSource"),
            "instancePrompt": longest("dataset.instancePrompt"),
            "classPrompt": longest("dataset.classPrompt"),
        },
        "training": FULL["training"]
        | {"lora": FULL["training"]["lora"] | {"initFrom": place("training.lora.initFrom")}},
        "checkpoint": {"keepIntermediate": {"steps": list(range(999_936, 1_000_000))}},
        "validation": FULL["validation"]
        | {"prompts": [longest("validation.prompts.[]")] * 8, "negativePrompt": longest("validation.negativePrompt")},
        "storage": {
            "uri": "s3://bucket/".ljust(len(longest("storage.uri")), "u"),
            "endpoint": "https://".ljust(len(longest("storage.endpoint")), "e"),
            "region": "r" * len(longest("storage.region")),
        },
    }
    spec = LoRAFineTuneSpec.model_validate(largest)
    size = len(canonical.encode(pods.run_config(RUN, spec, TRAINER).to_json()))
    assert size > 0.9 * runconfig.MAX_RUN_CONFIG_BYTES, "this is no longer the largest: some bound has become smaller"
    pods.build(RUN, spec, CreatePod(1, "spot", pool(), None, None), TRAINER)
