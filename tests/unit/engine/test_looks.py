"""When the Kubernetes events of a pod are read, and when not."""

from __future__ import annotations

import pytest

from lorafinetune.engine.looks import looks
from lorafinetune.engine.observation import NodeSeen
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, ended, pod, seen

KILLED = attempt(cause="Preempted", reason="Killed", exit_code=137, ended=stamp(NOW - 40))
PENDING = {"phase": "Pending", "node": None, "started": None}

ROWS = [
    # name, attempt, pod, whether its events are read now, seconds until the next look
    ("a pod that trains", attempt(), pod(), False, None),
    ("a pod just made", attempt(), pod(created=NOW - 2, **PENDING), False, 3),
    ("Pending for 5 s", attempt(), pod(created=NOW - 5, **PENDING), True, 30),
    ("Pending, read a while ago", attempt(), pod(created=NOW - 50, events_read=NOW - 10, **PENDING), False, 20),
    ("Pending, read long ago", attempt(), pod(created=NOW - 50, events_read=NOW - 30, **PENDING), True, 30),
    ("held back by its queue", attempt(), pod(gated=True, **PENDING), False, None),
    ("ended, and nobody knows why", attempt(), ended(), True, 10),
    ("ended, nobody knows why, asked just now", attempt(), ended(events_read=NOW - 1), False, 9),
    ("booked for want of better", KILLED, ended(ended=NOW - 40), True, 30),
    ("booked for want of better, asked just now", KILLED, ended(ended=NOW - 40, events_read=NOW - 1), False, 29),
    ("booked for sure", KILLED.model_copy(update={"reason": "Terminated"}), ended(ended=NOW - 40), False, None),
    ("booked long ago", KILLED.model_copy(update={"ended": stamp(NOW - 130)}), ended(ended=NOW - 130), False, None),
]


@pytest.mark.parametrize(
    ("entry", "given", "now", "next_look"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_look(entry, given, now: bool, next_look: float | None) -> None:
    asked, wait = looks(seen(pods=(given,), nodes={"node-a": NodeSeen("node-a", ready=True)}), [entry])
    assert [(one.name, one.uid) for one in asked] == ([(given.name, given.uid)] if now else [])
    assert wait == next_look
