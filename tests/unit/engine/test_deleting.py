"""What people are told while a run is deleted whose trainer may still write: for whom is waited, and until when."""

from __future__ import annotations

from dataclasses import replace

from lorafinetune.engine.observation import NodeSeen
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, pod, seen, status

LOST = {"node-a": NodeSeen("node-a", ready=False, not_ready_since=NOW - 60)}
BOOKED = attempt(cause="NodeLost", ended=stamp(NOW - 30))
ASKED = pod(deleting=True, deleting_since=NOW - 9)


def test_a_lost_node_is_waited_for_until_no_save_can_take_longer() -> None:
    run = seen(run={"deleting_since": NOW - 9}, status=status(BOOKED), pods=(ASKED,), nodes=LOST)
    decision = decide(run)
    assert decision.reason == "Stopping"
    assert f"node-a, which is lost: it may be writing, until {stamp(NOW + 90)} at most" in decision.message
    assert decide(replace(run, now=NOW + 89)).reason == "Stopping"
    assert decide(replace(run, now=NOW + 90)).reason == "Collecting"


def test_one_that_answers_again_has_its_grace() -> None:
    run = seen(run={"deleting_since": NOW - 9}, status=status(BOOKED), pods=(ASKED,))
    assert f"to end on node-a, which answers again, until {stamp(NOW + 81)} at most" in decide(run).message


def test_a_living_one_is_told_when_its_grace_is_over() -> None:
    run = seen(run={"deleting_since": NOW - 9}, status=status(attempt()), pods=(ASKED,))
    assert decide(run).message == f"waiting for {ASKED.name} to end, by {stamp(NOW + 81)} if its node answers"


def test_no_steps_are_to_do_again_for_a_run_that_is_deleted() -> None:
    gone = attempt(from_step=0, to_step=200)
    for deleting, again in ((None, True), (NOW - 9, False)):
        decision = decide(seen(run={"deleting_since": deleting}, status=status(gone), pods=(pod(),), nodes=LOST))
        told = [one.message for one in decision.announcements if one.reason == "Preempted"]
        assert [("again" in words) for words in told] == [again], decision.announcements
