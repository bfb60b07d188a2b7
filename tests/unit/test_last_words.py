"""What the operator makes of a termination message: whole, cut off, of a newer trainer, or none but the log's lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorafinetune.contract.event import MAX_MESSAGE
from lorafinetune.engine.classify import Cause, Ending, classify
from lorafinetune.engine.evidence import Evidence
from lorafinetune.engine.observation import NodeSeen, PodSeen
from lorafinetune.kube.seen import pod_seen
from lorafinetune_trainer.ending import MAX_TERMINATION_BYTES, fitted

WORDS = {"exitCode": 72, "step": 9, "durableStep": 4, "phase": "Training", "reason": "NaNLoss", "message": "cät.png"}


def seen(message: str, code: int = 72) -> PodSeen:
    """The pod of a trainer that left *message*."""
    moment = "2026-01-01T00:00:00Z"
    ended = {"exitCode": code, "reason": "Error", "startedAt": moment, "finishedAt": moment, "message": message}
    pod: dict[str, Any] = {
        "metadata": {
            "name": "timber-1",
            "uid": "u",
            "creationTimestamp": moment,
            "labels": {"lorafinetune.io/attempt": "1"},
        },
        "spec": {"nodeName": "node-a"},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}]},
    }
    return pod_seen(pod)


def verdict(message: str, code: int = 72) -> Ending:
    found = classify(Evidence(pod=seen(message, code), node=NodeSeen("node-a", ready=True), now=2e9))
    assert isinstance(found, Ending)
    return found


def test_a_message_is_read_as_it_was_written() -> None:
    found = seen(fitted(WORDS).decode()).termination
    assert found is not None
    assert (found.step, found.durable_step, found.reason, found.message) == (9, 4, "NaNLoss", "cät.png")


def test_one_that_was_cut_off_anywhere_leaves_the_code_to_speak() -> None:
    """SIGKILL while it was being written: whatever is there, the verdict is the code's, and nobody reads rubble."""
    whole = fitted(WORDS)
    for length in range(len(whole)):
        found = verdict(whole[:length].decode(errors="replace"))
        assert (found.cause, found.reason) == (Cause.ERROR, "NaNLoss")
        assert "{" not in found.message
        assert "learningRate" in found.message


def test_of_a_newer_trainer_reason_and_message_count() -> None:
    newer = {**WORDS, "phase": "Dreaming", "saved": "partly", "reason": "SomethingNew"}
    assert verdict(json.dumps(newer), 1).reason == "SomethingNew"
    assert verdict(json.dumps(newer), 1).message == "cät.png"


@pytest.mark.parametrize(
    ("lines", "reason", "message"),
    [
        ("Traceback (most recent call last):\nValueError: no", "TrainerFailed", "ValueError: no"),
        ('{"type": "failed", "reason": "NaNLoss", "message": "cat.png"}', "NaNLoss", "cat.png"),
        ('{"type": "progress", "message": "3 of 4 latents"}', "TrainerFailed", "exit code 1"),
        ('"}\n[1, 2]', "TrainerFailed", "[1, 2]"),
    ],
)
def test_the_log_speaks_where_no_message_was_left(lines: str, reason: str, message: str) -> None:
    found = verdict(lines, 1)
    assert found.reason == reason
    assert message in found.message


@pytest.mark.parametrize("letter", ["a", "ä", "猫", "😀", '"', "\x00", "\udc80"])
def test_no_message_is_longer_than_kubernetes_keeps(letter: str) -> None:
    body = fitted({**WORDS, "message": letter * 4 * MAX_MESSAGE})
    assert 3500 < len(body) <= MAX_TERMINATION_BYTES
    assert json.loads(body)["message"]
