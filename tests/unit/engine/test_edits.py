"""Edits of a run that trains: what is taken up, when, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.frozen import EDITABLE
from lorafinetune.api.status import CheckpointStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine import edits
from lorafinetune.engine.classify import Cause
from lorafinetune.engine.decision import CreatePod, DeletePod
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, ended, pod, seen, spec, status

MADE_FROM = edits.settings(spec())
AT_ONCE: dict[str, Any] = {"placement": {"pools": ["spot"], "returnToSpot": False}, "queueName": "q"}
WANTED = spec(checkpoint={"everySteps": 20})
TRAINING = Progress(1, sequence=9, step=300, phase=Phase.TRAINING, seconds_per_step=1.6, heard=NOW - 1)
FRESH = CheckpointStatus(attempt=1, step=300, uri="s3://x/", manifest_sha256="0" * 64, time=stamp(NOW - 2))
OLD = FRESH.model_copy(update={"time": stamp(NOW - 60)})


def editing(**changes: Any) -> Observation:
    """A run that trains, whose user has asked for more checkpoints a minute ago; one was committed just now."""
    about: dict[str, Any] = {
        "spec": WANTED,
        "status": status(attempt(), checkpoint=changes.pop("checkpoint", FRESH)),
        "pods": (pod(started=NOW - changes.pop("age", 600), settings=changes.pop("settings", MADE_FROM)),),
        "progress": TRAINING,
        "spec_since": NOW - 60,
    }
    return seen(**(about | changes))


def test_an_edit_is_taken_up_at_a_checkpoint() -> None:
    decision = decide(editing())
    (last,) = decision.status.attempts
    assert (decision.reason, last.stopping) == ("SpecEdited", Cause.MOVED)
    assert decision.message == "spec.checkpoint was edited"
    assert not decision.actions, "it is written down first"
    deciding = decide(editing(status=decision.status))
    assert [type(action) for action in deciding.actions] == [DeletePod]
    over = ended(exit_code=75, deleting=True, settings=MADE_FROM)
    after = decide(editing(status=decision.status, pods=(over,)))
    assert after.status.attempts[0].cause == Cause.MOVED
    assert after.status.attempts[0].reason == "SpecEdited"
    assert not after.status.preemptions
    assert [type(action) for action in after.actions] == [CreatePod]


NEAR = replace(TRAINING, step=430)


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("a young edit waits", {"spec_since": NOW - 3}),
        ("no checkpoint yet", {"checkpoint": None}),
        ("an old checkpoint", {"checkpoint": OLD}),
        ("another attempt's checkpoint", {"checkpoint": FRESH.model_copy(update={"attempt": 7})}),
        ("it has only just begun", {"age": 120}),
        ("112 seconds are left", {"progress": NEAR}),
        ("five steps are left, at an unknown pace", {"progress": replace(NEAR, step=495, seconds_per_step=None)}),
        ("a pod of an older version", {"settings": ""}),
        ("nothing that a pod is made from", {"spec": spec(**AT_ONCE)}),
        ("nothing was edited", {"spec": spec()}),
        ("a field that the older operator did not know", {"settings": "other=1"}),
    ],
)
def test_what_is_left_alone(why: str, changes: dict[str, Any]) -> None:
    decision = decide(editing(**changes))
    assert decision.reason == "Training", why
    assert not decision.actions
    assert decision.status.attempts[0].stopping is None


def test_an_edit_waits_for_five_minutes_at_most() -> None:
    assert decide(editing(checkpoint=None, spec_since=NOW - 299)).reason == "Training"
    assert decide(editing(checkpoint=None, spec_since=NOW - 300)).reason == "SpecEdited"


BOTH = spec(checkpoint={"everySteps": 20}, **AT_ONCE)
ALREADY = "; spec.placement was edited: holds already; spec.queueName was edited: holds from the next attempt on"


@pytest.mark.parametrize(
    ("why", "changes", "said"),
    [
        (
            "it waits for a checkpoint",
            {"checkpoint": OLD},
            f"; spec.checkpoint was edited: taken up at the next checkpoint, by {stamp(NOW + 240)} at the latest",
        ),
        (
            "the attempt is young, so the checkpoints of a minute do not count",
            {"age": 120},
            f"taken up at the first checkpoint after {stamp(NOW + 60)}, by {stamp(NOW + 240)} at the latest",
        ),
        (
            "so young that it is older than its edit is patient",
            {"age": 10, "spec_since": NOW - 250},
            f"; spec.checkpoint was edited: taken up at {stamp(NOW + 170)}",
        ),
        ("it is nearly done", {"progress": NEAR}, "; spec.checkpoint was edited: not taken up, for it is nearly done"),
        (
            "more steps are trained by the next attempt",
            {"progress": NEAR, "spec": spec(training={"steps": 503})},
            "; spec.training.steps was edited: the next attempt trains the rest",
        ),
        ("all that was edited is named", {"checkpoint": OLD, "spec": BOTH}, f" at the latest{ALREADY}"),
        ("what holds already is told", {"spec": spec(**AT_ONCE)}, f"of 500, 1.6 s/step{ALREADY}"),
        ("and for some minutes only", {"spec": spec(**AT_ONCE), "spec_since": NOW - 301}, "of 500, 1.6 s/step"),
    ],
)
def test_people_are_told_what_becomes_of_their_edit_and_until_when(
    why: str, changes: dict[str, Any], said: str
) -> None:
    assert decide(editing(**changes)).message.endswith(said), why


@pytest.mark.parametrize(
    ("win", "reason"),
    [
        ({"spec": spec(checkpoint={"everySteps": 20}, suspend=True)}, "Suspending"),
        ({"run": {"deleting_since": NOW - 1}}, "Stopping"),
    ],
)
def test_suspension_and_deletion_win(win: dict[str, Any], reason: str) -> None:
    assert decide(editing(**win)).reason == reason


def test_a_field_at_its_default_is_as_if_it_were_not_there() -> None:
    """Else an operator with one more field would end every attempt of the cluster."""
    plain = spec(checkpoint={}, metrics={})
    assert edits.changed(edits.settings(plain), edits.settings(spec())) == []
    assert edits._given(spec(checkpoint={"keep": 2, "everySteps": 7}).checkpoint) == {"everySteps": 7}


ANOTHER: dict[str, dict[str, Any]] = {
    "checkpoint": {"checkpoint": {"keep": 5}},
    "validation": {"validation": {"prompts": ["a dog"], "everySteps": 50}},
    "metrics": {"metrics": {"tensorBoard": True}},
    "training.steps": {"training": {"steps": 900}},
    "baseModel.cache": {"baseModel": {"source": "hf://a/b", "cache": False}},
    "baseModel.credentialsSecret": {"baseModel": {"source": "hf://a/b", "credentialsSecret": "hub"}},
    "dataset.keepClassImages": {
        "dataset": {"source": "s3://data/timber/", "classPrompt": "a dog", "keepClassImages": True}
    },
    "storage.credentialsSecret": {"storage": {"uri": "s3://loras/", "credentialsSecret": "other"}},
}


@pytest.mark.parametrize("field", ANOTHER)
def test_each_field_is_known_by_its_name(field: str) -> None:
    assert edits.changed(MADE_FROM, edits.settings(spec(**ANOTHER[field]))) == [field]


def test_all_that_may_change_is_looked_at_or_no_part_of_a_pod() -> None:
    known = {part.split("=")[0] for part in MADE_FROM.split(";")}
    frozen_in_part = {"baseModel", "dataset", "training", "storage"}
    assert set(edits.AT_ONCE) < known
    members = {field.alias or "" for field in LoRAFineTuneSpec.model_fields.values()}
    assert (members - frozen_in_part) | EDITABLE | {"training.steps"} == known | {"suspend"}


def test_an_edit_that_is_taken_back_changes_nothing() -> None:
    assert decide(editing(spec=spec(checkpoint={"everySteps": spec().checkpoint.every_steps}))).reason == "Training"
