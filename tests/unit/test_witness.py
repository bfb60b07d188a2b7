"""What the operator's log says of a run, and what is no news."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any, cast

import pytest

from lorafinetune.contract.event import Phase
from lorafinetune.engine.decision import Decision, DeletePod, ReleasePod
from lorafinetune.engine.observation import RunSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from lorafinetune.kube.client import Cluster
from lorafinetune.kube.events import EventRecorder
from lorafinetune.telemetry import LOG_FIELDS, JsonFormatter, Metrics
from lorafinetune.witness import Witness
from tests.unit.engine.given import NOW, attempt, pod, seen, status

RUN = RunSeen("default", "timber", "0b1c2d3e-0000", 1, NOW - 900)


def training(step: int, number: int = 1, **changes: Any) -> Decision:
    progress = Progress(
        number, sequence=9, step=step, phase=Phase.TRAINING, seconds_per_step=1 + step / 1000, heard=NOW
    )
    plain: dict[str, Any] = {"status": status(attempt(number)), "pods": (pod(number),), "progress": progress}
    return decide(seen(**(plain | changes)))


@pytest.fixture
def witness() -> Witness:
    return Witness(cast("Cluster", None), cast("EventRecorder", None), Metrics(), namespace="system", clock=lambda: NOW)


def test_a_line_is_news_unless_only_its_numbers_are(witness: Witness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lorafinetune.decisions")
    validating = replace(Progress(1, sequence=9, phase=Phase.VALIDATING, heard=NOW), step=302)
    heard = [
        (training(300), "INFO"),
        (training(300), "DEBUG"),
        (training(301), "DEBUG"),
        (training(302, progress=validating), "INFO"),
        (training(303), "INFO"),
        (training(304, number=2), "INFO"),
        (training(305, number=2), "DEBUG"),
    ]
    for decision, _ in heard:
        witness.decided(RUN, decision)
    assert [(one.getMessage(), one.levelname) for one in caplog.records] == [
        (decision.message, level) for decision, level in heard
    ]


def test_a_line_says_of_what_it_speaks(witness: Witness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lorafinetune.decisions")
    witness.decided(RUN, replace(training(300), actions=(DeletePod("timber-1", "pod-1"), ReleasePod("a", "b"))))
    said = json.loads(JsonFormatter().format(caplog.records[0]))
    assert {name: said.get(name) for name in LOG_FIELDS} == {
        "run": "default/timber",
        "uid": RUN.uid,
        "generation": 1,
        "attempt": 1,
        "reason": "Training",
        "phase": "Running",
        "did": "DeletePod, ReleasePod",
        "pool": "spot",
        "step": 300,
    }


def test_of_two_runs_each_has_its_own_news(witness: Witness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lorafinetune.decisions")
    for uid in ("a", "b", "a", "b"):
        witness.decided(replace(RUN, uid=uid), training(300))
    witness.forgotten("a")
    witness.decided(replace(RUN, uid="a"), training(300))
    assert [one.levelname for one in caplog.records] == ["INFO", "INFO", "DEBUG", "DEBUG", "INFO"]
