"""Silent nodes: replaced at once, or held for a while, and never for longer than is written down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.api.status import ConditionStatus
from lorafinetune.contract.event import Phase
from lorafinetune.engine.activities import Activity
from lorafinetune.engine.conditions import ConditionType, find
from lorafinetune.engine.decision import CreatePod
from lorafinetune.engine.observation import ClusterSeen, NodeSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from lorafinetune.engine.silence import LONGEST_HOLD, SETTLING, held
from tests.unit.engine.given import NOW, attempt, ended, pod, seen, status

WHOLE = ClusterSeen(unbroken_since=NOW - 3600, nodes=9, silent=1)
CUT_OFF = replace(WHOLE, silent=4)
FRESH = replace(WHOLE, unbroken_since=NOW - 5)


def silent(seconds: float) -> NodeSeen:
    return NodeSeen("node-a", ready=False, not_ready_since=NOW - seconds)


@pytest.mark.parametrize(
    ("name", "cluster", "node", "seconds"),
    [
        ("one silent node is lost", WHOLE, silent(11), None),
        ("two of three are bad luck", replace(WHOLE, nodes=3, silent=2), silent(11), None),
        ("three of a hundred too", replace(WHOLE, nodes=100, silent=3), silent(11), None),
        ("four of nine are a partition", CUT_OFF, silent(11), LONGEST_HOLD - 11),
        ("but not for ever", CUT_OFF, silent(LONGEST_HOLD), None),
        ("a node whose object is gone is believed", CUT_OFF, None, None),
        ("just after a gap nothing is", FRESH, silent(3600), SETTLING - 5),
        ("not even a node that is gone", FRESH, None, SETTLING - 5),
        ("until we have looked for a while", replace(FRESH, unbroken_since=NOW - SETTLING), None, None),
    ],
)
def test_what_is_held(name: str, cluster: ClusterSeen, node: NodeSeen | None, seconds: float | None) -> None:
    found = held(pod(), node, cluster, NOW)
    assert (found.seconds if found is not None else None) == seconds, name


def nodes(node: NodeSeen | None) -> dict[str, NodeSeen]:
    return {} if node is None else {"node-a": node}


def test_a_held_replacement_is_a_named_wait() -> None:
    given = seen(status=status(attempt()), pods=(pod(),), nodes=nodes(silent(20)), cluster=CUT_OFF)
    decision = decide(given)
    assert decision.actions == ()
    assert (decision.status.phase, decision.reason) == ("Running", "ReplacementHeld")
    assert "4 of 9 nodes" in decision.message
    assert "until 2027-01-15T08:01:10Z" in decision.message
    assert decision.status.activity == Activity.UNCLEAR
    running = find(decision.status.conditions, ConditionType.RUNNING)
    assert running is not None
    assert running.status is ConditionStatus.UNKNOWN
    assert decision.look_again is not None
    assert decision.look_again <= 10
    later = replace(given, now=NOW + 1, status=decision.status)
    assert decide(later).message == decision.message, "it is not written anew each second"


@pytest.mark.parametrize("cluster", [CUT_OFF, FRESH], ids=["many silent", "fresh view"])
def test_what_ended_for_certain_is_replaced_at_once(cluster: ClusterSeen) -> None:
    over = ended(disruption="DeletionByPodGC", deleting=True)
    decision = decide(seen(status=status(attempt()), pods=(over,), nodes=nodes(silent(20)), cluster=cluster))
    assert [type(action) for action in decision.actions] == [CreatePod]


@pytest.mark.parametrize("second", range(61))
def test_a_lone_silent_node_is_replaced_within_thirty_seconds(second: int) -> None:
    given = seen(status=status(attempt()), pods=(pod(),), nodes=nodes(silent(second)), cluster=WHOLE)
    created = any(isinstance(action, CreatePod) for action in decide(given).actions)
    assert created == (second >= 10)


def test_a_trainer_that_is_heard_is_alive_however_long_its_node_is_silent() -> None:
    alive = Progress(1, sequence=9, step=10, phase=Phase.TRAINING, heard=NOW - 9)
    given = seen(status=status(attempt()), pods=(pod(),), nodes=nodes(silent(3600)), progress=alive, cluster=WHOLE)
    assert decide(given).actions == ()


def lost_at(cluster: Any, node: NodeSeen | None, after: int) -> bool:
    given = seen(status=status(attempt()), pods=(pod(),), nodes=nodes(node), cluster=cluster, now=NOW + after)
    return any(isinstance(action, CreatePod) for action in decide(given).actions)


@pytest.mark.parametrize("cluster", [CUT_OFF, replace(CUT_OFF, unbroken_since=NOW - 5)])
def test_every_hold_ends(cluster: ClusterSeen) -> None:
    """However many nodes stay silent, and whatever became of our view: 90 s after it fell silent a node is lost."""
    assert not lost_at(cluster, silent(0), 80)
    assert lost_at(cluster, silent(0), 91)
