"""Late evidence: what it may change in the record of a closed attempt, for how long, and what it never changes."""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.contract.event import Termination
from lorafinetune.engine.attempts import settle
from lorafinetune.engine.decision import Correction, DeletePod, ReleasePod
from lorafinetune.engine.observation import NodeSeen, PodSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, ended, pod, seen, status

HEALTHY = {"node-a": NodeSeen("node-a", ready=True)}
EVICTED: dict[str, Any] = {"disruption": "EvictionByEvictionAPI", "disruption_since": NOW - 40}


def closed(cause: str, reason: str, **more: Any):
    return attempt(**({"cause": cause, "reason": reason, "message": "so it seemed", "ended": stamp(NOW - 40)} | more))


ROWS = [
    # name, the record, what is seen by now, its cause by now
    ("a kill turns out to be a preemption", closed("Infrastructure", "Killed", exit_code=137), ended(ended=NOW - 40, **EVICTED), "Preempted"),
    ("a bare code turns out to be a preemption", closed("Error", "TrainerFailed", exit_code=1), ended(exit_code=1, ended=NOW - 40, **EVICTED), "Preempted"),
    ("a lost node's pod turns out to be out of memory", closed("NodeLost", "NodeNotReady"), ended(ended=NOW - 60, container_reason="OOMKilled"), "OutOfMemory"),
    ("a kill turns out to be an eviction for the node's want", closed("Preempted", "Killed", exit_code=137), ended(ended=NOW - 40, platform_word="Evicted", platform_message="The node was low on resource: memory."), "Infrastructure"),
    ("a silent bucket turns out to be a dying node", closed("Infrastructure", "StorageUnreachable", exit_code=74), ended(exit_code=74, ended=NOW - 40, **EVICTED), "Preempted"),
    ("what a zombie did later does not count", closed("NodeLost", "NodeNotReady"), ended(exit_code=1, ended=NOW - 5, termination=Termination(exit_code=1, reason="TrainerError")), "NodeLost"),
    ("that a zombie was fenced does not count", closed("NodeLost", "NodeNotReady"), ended(exit_code=76, ended=NOW - 41), "NodeLost"),
    ("the trainer's own error stays", closed("Error", "TrainerError", exit_code=1), ended(exit_code=1, ended=NOW - 40, **EVICTED), "Error"),
    ("out of memory stays", closed("OutOfMemory", "OutOfMemory", exit_code=137), ended(ended=NOW - 40, **EVICTED), "OutOfMemory"),
    ("invalid input stays", closed("Invalid", "EmptyDataset", exit_code=78), ended(exit_code=137, ended=NOW - 40, **EVICTED), "Invalid"),
    ("what we ended ourselves stays", closed("Moved", "ReturningToSpot", exit_code=75), ended(exit_code=75, ended=NOW - 40, **EVICTED), "Moved"),
    ("a mark that is gone again takes nothing back", closed("Preempted", "NodeReclaimed", exit_code=137), ended(ended=NOW - 40, capacity_type="OnDemand"), "Preempted"),
    ("nor a node that is back", closed("NodeLost", "NodeNotReady"), ended(ended=NOW - 45, capacity_type="OnDemand"), "NodeLost"),
    ("nor an event that is forgotten", closed("Preempted", "TaintManagerEviction", exit_code=137), ended(ended=NOW - 40, capacity_type="OnDemand"), "Preempted"),
    ("after two minutes the record stands", closed("Error", "TrainerFailed", exit_code=1, ended=stamp(NOW - 121)), ended(exit_code=1, ended=NOW - 121, disruption="X", disruption_since=NOW - 122), "Error"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "by_now", "cause"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_record(record, by_now: PodSeen, cause: str) -> None:
    settled = settle(seen(status=status(record), pods=(by_now,), nodes=HEALTHY))
    entry = settled.status.attempts[0]
    assert entry.cause == cause
    changed = cause != record.cause
    assert settled.corrected == ((Correction(record.cause, cause, "spot"),) if changed else ())
    assert [one.reason for one in settled.announcements] == (["EndingCorrected"] if changed else [])
    if changed:
        said = settled.announcements[0].message
        assert record.cause in said
        assert cause in said
        assert entry.message in said
    assert settled.status.preemptions == (cause in {"Preempted", "NodeLost"})
    assert settled.status.failures == (cause == "Error")
    assert not settled.ended, "the metric of endings has counted it already"


def test_a_finer_reason_of_the_same_cause_is_written_and_not_told() -> None:
    settled = settle(seen(status=status(closed("Preempted", "Killed")), pods=(ended(ended=NOW - 40, **EVICTED),)))
    assert settled.status.attempts[0].reason == "EvictionByEvictionAPI"
    assert not settled.announcements
    assert not settled.corrected


def test_the_words_of_a_trainer_that_was_lost_with_its_node_count() -> None:
    told = Progress(1, reason="EmptyDataset", message="put images there", exit_code=78)
    silent = {"node-a": NodeSeen("node-a", ready=False, not_ready_since=NOW - 60)}
    settled = settle(seen(status=status(attempt()), pods=(pod(),), nodes=silent, progress=told))
    assert (settled.status.attempts[0].cause, settled.status.attempts[0].reason) == ("Invalid", "EmptyDataset")


def chores(given) -> list[object]:
    return [one for one in settle(given).housekeeping if isinstance(one, DeletePod | ReleasePod)]


def test_a_pod_that_may_still_say_why_is_held_and_then_let_go() -> None:
    for record in (closed("Preempted", "Killed", exit_code=137), closed("Error", "TrainerFailed", exit_code=1)):
        over = ended(exit_code=record.exit_code, ended=NOW - 40)
        settled = settle(seen(status=status(record), pods=(over,), nodes=HEALTHY))
        assert not [one for one in settled.housekeeping if isinstance(one, ReleasePod)]
        assert settled.revisit is not None
        assert settled.revisit <= 80
        late = seen(status=status(record), pods=(over,), nodes=HEALTHY, now=NOW + 81)
        assert chores(late) == [ReleasePod(over.name, over.uid)]


def test_a_pod_whose_end_is_clear_is_let_go_at_once() -> None:
    over = ended(ended=NOW - 40, **EVICTED)
    record = closed("Preempted", "EvictionByEvictionAPI", exit_code=137)
    assert chores(seen(status=status(record), pods=(over,))) == [ReleasePod(over.name, over.uid)]


def test_a_lost_pod_is_deleted_while_it_is_held_and_let_go_when_it_has_spoken() -> None:
    record, silent = closed("NodeLost", "NodeNotReady"), {"node-a": NodeSeen("node-a", ready=False)}
    alive = pod()
    assert chores(seen(status=status(record), pods=(alive,), nodes=silent)) == [DeletePod(alive.name, alive.uid)]
    asked = replace(alive, deleting=True, deleting_since=NOW - 30)
    assert chores(seen(status=status(record), pods=(asked,), nodes=silent)) == []
    spoke = replace(asked, phase="Failed", exit_code=76, ended=NOW - 1)
    assert chores(seen(status=status(record), pods=(spoke,), nodes=HEALTHY)) == [ReleasePod(alive.name, alive.uid)]
