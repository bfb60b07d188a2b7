"""Events on their way to the operator: in order, repeated until accepted; and only two answers stop the training."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorafinetune.contract.event import Event
from tests.integration.trainer.process import Run, Trainers
from tests.integration.trainer.receiver import Receiver, receive


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receive(tmp_path) as running:
        yield running


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first-token\n")
    return tmp_path / "token"


def run_with(trainers: Trainers, receiver: Receiver, token: Path, name: str, **changes: Any) -> Run:
    webhook = {"url": receiver.url, "ca": receiver.authority, "token": str(token)}
    return trainers.run(name, webhook=webhook, **changes)


def test_all_that_counts_arrives_in_order(trainers: Trainers, receiver: Receiver, token: Path, name: str) -> None:
    run = run_with(trainers, receiver, token, name)
    attempt = run.finish()
    events = [Event.model_validate(event) for event in receiver.accepted]
    assert [str(event.type) for event in events if event.type != "progress"] == [
        "started",
        "checkpoint",
        "checkpoint",
        "checkpoint",
        "finished",
    ]
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert {(event.run_uid, event.attempt) for event in events} == {(run.config.run.uid, 1)}
    assert events[-1].artifact == run.head.artifact
    assert [event.checkpoint for event in events if event.checkpoint][-2:] == run.head.checkpoints
    assert set(receiver.tokens) == {"Bearer first-token"}
    assert "first-token" not in attempt.tail()


def test_sigterm_is_told(trainers: Trainers, receiver: Receiver, token: Path, name: str) -> None:
    run = run_with(trainers, receiver, token, name, training={"steps": 400}, checkpoint={"everySteps": 400})
    attempt = run.start()
    attempt.wait_for(lambda event: event["step"] >= 1)
    attempt.kill(signal.SIGTERM)
    assert attempt.end(30) == 75
    last = receiver.accepted[-1]
    assert (last["type"], last["saved"]) == ("yielded", "new")
    assert last["step"] == attempt.last_words.durable_step
    assert [event["step"] for event in receiver.accepted if event["type"] == "checkpoint"] == [last["step"]]


def test_a_failure_is_told(trainers: Trainers, receiver: Receiver, token: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    attempt = run_with(trainers, receiver, token, name, dataset={"source": str(tmp_path / "empty")}).start()
    assert attempt.end() == 78
    assert (receiver.accepted[-1]["type"], receiver.accepted[-1]["reason"]) == ("failed", "EmptyDataset")


def test_refused_for_a_while_and_another_token(trainers: Trainers, receiver: Receiver, token: Path, name: str) -> None:
    """Each event is sent again until it is accepted, with the token as it is then."""
    answers = iter([503, 429, 401])

    def answer(event: dict[str, Any]) -> int:
        status = next(answers, 200)
        if status == 401:
            token.write_text("second-token")
        return status

    receiver.answer = answer
    run_with(trainers, receiver, token, name).finish()
    assert [event["sequence"] for event in receiver.events[:4]] == [1, 1, 1, 1]
    assert receiver.accepted[-1]["type"] == "finished"
    assert receiver.tokens[:4] == ["Bearer first-token"] * 3 + ["Bearer second-token"]


def test_an_event_that_is_refused_for_good_is_dropped(
    trainers: Trainers, receiver: Receiver, token: Path, name: str
) -> None:
    receiver.answer = lambda event: 400 if event["type"] == "checkpoint" else 200
    run_with(trainers, receiver, token, name).finish()
    checkpoints = [event["sequence"] for event in receiver.events if event["type"] == "checkpoint"]
    assert len(checkpoints) == len(set(checkpoints)) == 3
    assert receiver.accepted[-1]["type"] == "finished"


@pytest.mark.parametrize(("status", "reason"), [(409, "Fenced"), (404, "RunGone")])
def test_the_receiver_says_stop(
    status: int, reason: str, trainers: Trainers, receiver: Receiver, token: Path, name: str
) -> None:
    receiver.answer = lambda event: status if event["type"] == "checkpoint" else 200
    run = run_with(trainers, receiver, token, name, training={"steps": 400})
    attempt = run.start()
    assert attempt.end() == 76, attempt.tail()
    assert attempt.last_words.reason == reason
    assert f"the receiver says {status}" in attempt.last_words.message
    newest = run.head.newest
    assert newest is not None
    assert newest.step < 10, "it went on and committed"


@pytest.mark.parametrize("how", ["nobody there", "another authority", "silence", "no token"])
def test_training_does_not_care(
    how: str, trainers: Trainers, receiver: Receiver, token: Path, tmp_path: Path, name: str
) -> None:
    run = run_with(trainers, receiver, token, name)
    assert run.config.webhook is not None
    webhook = run.config.webhook
    if how == "nobody there":
        webhook = webhook.model_copy(update={"url": "https://127.0.0.1:9"})
    if how == "another authority":
        (tmp_path / "other").mkdir()
        with receive(tmp_path / "other") as other:
            webhook = webhook.model_copy(update={"ca": other.authority})
    if how == "silence":
        receiver.hang = 30
    if how == "no token":
        webhook = webhook.model_copy(update={"token": str(tmp_path / "none")})
    attempt = run.finish(webhook=webhook)
    assert any("event" in line.get("note", "") for line in attempt.lines)
    assert "first-token" not in attempt.tail()
    if how != "silence":
        assert not receiver.events
