"""What may change once a run has started, and what the API server then refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml
from kubernetes import client

from lorafinetune.api.kinds import LORAFINETUNE as RUN_KIND
from lorafinetune.api.render import manifest
from tests.integration.crd_runs import STATUS, Runs
from tests.manifests import FINETUNE, REMOVED, changed


class Edit(NamedTuple):
    """A change of one field, in a run that *before* makes fit for it."""

    path: str
    value: Any
    before: Mapping[str, Any] = MappingProxyType({})


EDITS = [
    Edit("spec.baseModel.source", "hf://someone/else"),
    Edit("spec.baseModel.revision", REMOVED),
    Edit("spec.baseModel.vae", "hf://someone/vae"),
    Edit("spec.dataset.source", "s3://training-data/other/"),
    Edit("spec.dataset.instancePrompt", REMOVED),
    Edit("spec.dataset.classSource", "s3://training-data/dogs/"),
    Edit("spec.dataset.classPrompt", "photo of a dog"),
    Edit("spec.dataset.classImages", 50, {"spec.dataset.classPrompt": "photo of a dog"}),
    Edit("spec.training.epochs", 3, {"spec.training.steps": REMOVED}),
    Edit("spec.training.epochs", 4, {"spec.training.steps": REMOVED, "spec.training.epochs": 3}),
    Edit("spec.training.aspectBuckets", False),
    Edit("spec.training.randomCrop", True),
    Edit("spec.training.captions", {"shuffle": True, "keepTokens": 1}),
    Edit("spec.training.priorLossWeight", 0.5, {"spec.dataset.classPrompt": "photo of a dog"}),
    Edit("spec.training.optimizer", "AdamW8bit"),
    Edit("spec.training.textEncoderLearningRate", 5e-5, {"spec.training.lora.textEncoder": True}),
    Edit("spec.training.scheduleCycles", 3, {"spec.training.schedule": "cosineWithRestarts"}),
    Edit("spec.training.schedulePower", 1, {"spec.training.schedule": "polynomial"}),
    Edit("spec.training.microBatch", 2),
    Edit("spec.training.minSnrGamma", 5),
    Edit("spec.training.noiseOffset", 0.05),
    Edit("spec.training.prediction", "v_prediction"),
    Edit("spec.training.zeroTerminalSnr", True),
    Edit("spec.training.emaDecay", 0.999),
    Edit("spec.training.compile", True),
    Edit("spec.training.resolution", 512),
    Edit("spec.training.learningRate", 2e-4),
    Edit("spec.training.schedule", "cosine"),
    Edit("spec.training.warmupSteps", 5),
    Edit("spec.training.batchSize", 2),
    Edit("spec.training.gradientAccumulation", 1),
    Edit("spec.training.weightDecay", 0),
    Edit("spec.training.maxGradNorm", 2),
    Edit("spec.training.precision", "fp16"),
    Edit("spec.training.gradientCheckpointing", True),
    Edit("spec.training.seed", 1),
    Edit("spec.training.randomFlip", True),
    Edit("spec.training.lora", {"rank": 8, "alpha": 16}),
    Edit("spec.training.steps", 499),
    Edit("spec.storage.uri", "s3://loras/other/"),
    Edit("spec.storage.endpoint", REMOVED),
    Edit("spec.storage.region", "eu-central-1"),
    Edit("spec.storage.unsafeNoFencing", True),
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
    ("spec.baseModel.cache", False),
    ("spec.checkpoint.keepIntermediate", {"steps": [100]}),
    ("spec.metrics.tensorBoard", True),
    ("spec.validation", {"prompts": ["a dog"]}),
    ("spec.dataset.keepClassImages", False),
    ("metadata.labels", {"team": "timber"}),
]


@pytest.fixture
def stored(runs: Runs) -> Callable[[bool], dict[str, Any]]:
    def make(started: bool, before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        runs.create(changed(FINETUNE, before))
        return runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z", "phase": "Running"} if started else {})

    return make


@pytest.mark.parametrize(("path", "value", "before"), EDITS, ids=[one.path for one in EDITS])
def test_the_mathematics_may_change_until_the_start_and_not_after(
    runs: Runs, stored: Callable[..., dict[str, Any]], path: str, value: Any, before: Mapping[str, Any]
) -> None:
    made = stored(False, before)
    runs.set("timber", {path: value})
    runs.set("timber", {"spec": made["spec"]})
    runs.write_status("timber", STATUS)
    with pytest.raises(client.ApiException) as refused:
        runs.set("timber", {path: value})
    [cause] = json.loads(refused.value.body)["details"]["causes"]
    assert cause["field"] == (path if path == "spec.training.steps" else path.rpartition(".")[0])
    assert cause["message"].endswith(_sentence(path))


def _sentence(path: str) -> str:
    if path == "spec.training.steps":
        return f": {path} can only be raised once the run has started: set it back or higher"
    return f": {path} cannot change once the run has started: set it back, or start a new run under another name"


@pytest.mark.parametrize(("path", "value"), ALWAYS, ids=[f"{path} {number}" for number, (path, _) in enumerate(ALWAYS)])
def test_what_may_change_at_any_time(
    runs: Runs, stored: Callable[[bool], dict[str, Any]], path: str, value: Any
) -> None:
    runs.replace(changed(stored(True), {path: value}))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosineWithRestarts", "polynomial"])
def test_steps_cannot_be_raised_under_a_schedule_that_looks_at_the_end(runs: Runs, schedule: str) -> None:
    runs.create(changed(FINETUNE, {"spec.training.schedule": schedule}))
    runs.set("timber", {"spec.training.steps": 600})
    runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z"})
    with pytest.raises(client.ApiException, match="whose schedule is not constant"):
        runs.set("timber", {"spec.training.steps": 700})


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_steps_cannot_be_added_or_removed_after_the_start(runs: Runs, schedule: str) -> None:
    with_steps = changed(FINETUNE, {"spec.training.schedule": schedule})
    without = changed(with_steps, {"spec.training.steps": REMOVED})
    for body, edit in ((with_steps, REMOVED), (without, 500)):
        runs.create(body)
        runs.set("timber", {"spec.training.steps": edit})
        runs.set("timber", {"spec": body["spec"]})
        runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z"})
        runs.set("timber", {"spec.suspend": True})
        with pytest.raises(client.ApiException) as refused:
            runs.set("timber", {"spec.training.steps": edit})
        [cause] = json.loads(refused.value.body)["details"]["causes"]
        assert cause["field"] == "spec.training.steps"
        assert "cannot be added or removed once the run has started" in cause["message"]
        runs.clear()


VALIDATION = {"prompts": ["a dog"], "everySteps": 50}


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompts", ["a cat"]), ("negativePrompt", "blur"), ("inferenceSteps", 9), ("guidance", 1), ("seed", 9)],
)
def test_pictures_of_one_run_stay_comparable(
    runs: Runs, stored: Callable[..., dict[str, Any]], field: str, value: Any
) -> None:
    path = f"spec.validation.{field}"
    stored(False, {"spec.validation": VALIDATION})
    runs.set("timber", {path: value})
    runs.set("timber", {"spec.validation": VALIDATION})
    runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z"})
    with pytest.raises(client.ApiException) as refused:
        runs.set("timber", {path: value})
    [cause] = json.loads(refused.value.body)["details"]["causes"]
    assert cause["field"] == "spec.validation"
    assert f": {path} cannot change once the run has started, for pictures of different steps" in cause["message"]
    assert cause["message"].endswith("are to be compared: set it back, or remove spec.validation")
    runs.set("timber", {"spec.validation.everySteps": 100})
    runs.set("timber", {"spec.validation": REMOVED})


def test_steps_cannot_be_raised_after_the_end(runs: Runs, stored: Callable[[bool], dict[str, Any]]) -> None:
    stored(True)
    runs.write_status("timber", {"startTime": "2026-11-23T07:51:00Z", "completionTime": "2026-11-23T07:59:00Z"})
    with pytest.raises(client.ApiException, match="once the run has ended"):
        runs.set("timber", {"spec.training.steps": 700})


def test_every_frozen_or_editable_field_is_in_one_of_the_two_tables() -> None:
    """A field that is added to the models must be put on one side, and tested there."""
    sections = {"baseModel": 5, "dataset": 6, "training": 30, "storage": 6}
    schema = yaml.safe_load(manifest(RUN_KIND))["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "spec"
    ]
    covered = {one.path for one in EDITS} | {path for path, _ in ALWAYS}
    fields = {f"spec.{section}.{name}" for section in sections for name in schema["properties"][section]["properties"]}
    assert len(fields) == sum(sections.values())
    assert fields - covered == set()
