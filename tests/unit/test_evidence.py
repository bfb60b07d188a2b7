"""Kubernetes events reduced to what the engine asks; the reading itself is tested on a real API server."""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

from typing import Any

import pytest

from lorafinetune.engine.observation import EventsSeen
from lorafinetune.engine.times import instant, stamp
from lorafinetune.kube.evidence import MAX_SENTENCE, reduce

T = instant("2026-11-23T10:00:00Z")


def event(reason: str, note: str = "", at: float = 0, *, first: float | None = None) -> dict[str, Any]:
    """As recorders of client-go write them, who fill the members that events.k8s.io calls deprecated."""
    began = stamp(T + (at if first is None else first))
    return {
        "metadata": {"creationTimestamp": began},
        "reason": reason,
        "note": note,
        "deprecatedFirstTimestamp": began,
        "deprecatedLastTimestamp": stamp(T + at),
    }


SCALING = event("TriggeredScaleUp", "pod triggered scale-up: [{spot 1->2 (max: 3)}]", 5)
REFUSED = event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 max node group size reached", 10)
NOMINATED = event("Nominated", "Pod should schedule on: nodeclaim/spot-1, node/ip-1", 7)
UNFIT = event("FailedScheduling", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", 1)
NO_POOL = event("FailedScheduling", 'Failed to schedule pod, incompatible with nodepool "spot"', 12)
STOCKOUT = event("FailedScaleUp", "Node scale up in zones a associated with this pod failed: GCE out of resources.", 40)
FAILED_CLAIM = {"spot-1": (T + 9, "NodeClaim spot-1 event: InsufficientInstanceCapacity")}

ROWS = [
    # name, events, claims that failed, what is known
    ("nothing", [], {}, {}),
    ("the scheduler alone says nothing of capacity", [UNFIT], {}, {}),
    ("a scale-up is under way", [UNFIT, SCALING], {}, {"scale_up_since": T + 5}),
    ("a scale-up that is told again and again", [event("TriggeredScaleUp", "", 90, first=5)], {}, {"scale_up_since": T + 5}),
    ("the autoscaler will not", [REFUSED], {}, {"no_scale_up": REFUSED["note"]}),
    ("it will not any more", [SCALING, REFUSED], {}, {"no_scale_up": REFUSED["note"]}),
    ("it would not, and does now", [event("NotTriggerScaleUp", "no", 2), SCALING], {}, {"scale_up_since": T + 5}),
    ("in whatever order they are listed", [SCALING, event("NotTriggerScaleUp", "no", 2)], {}, {"scale_up_since": T + 5}),
    ("Karpenter makes a node", [UNFIT, NOMINATED], {}, {"scale_up_since": T + 7}),
    ("Karpenter's claim finds no machine", [NOMINATED], FAILED_CLAIM, {"insufficient_capacity": FAILED_CLAIM["spot-1"][1]}),
    ("it tries another claim", [NOMINATED, event("Nominated", "Pod should schedule on: nodeclaim/spot-2", 30)], FAILED_CLAIM, {"scale_up_since": T + 30}),
    ("another pod's claim is no matter", [NOMINATED], {"spot-9": (T, "no")}, {"scale_up_since": T + 7}),
    ("Karpenter has no pool for it", [NO_POOL], {}, {"no_scale_up": NO_POOL["note"]}),
    ("GKE has no machine", [SCALING, STOCKOUT], {}, {"insufficient_capacity": STOCKOUT["note"]}),
    ("a sandbox that cannot be made", [event("FailedCreatePodSandBox", "cni is not ready", 3)], {}, {"start_problem": "FailedCreatePodSandBox: cni is not ready"}),
    ("preempted", [event("Preempted", "Preempted by pod x on node a", 3)], {}, {"platform_word": "Preempted", "platform_message": "Preempted by pod x on node a"}),
    ("the surest word counts", [event("NodeNotReady", "Node is not ready", 9), event("TaintManagerEviction", "Marking for deletion Pod a/b", 3)], {}, {"platform_word": "TaintManagerEviction", "platform_message": "Marking for deletion Pod a/b"}),
    ("a deletion that was cancelled is none", [event("TaintManagerEviction", "Cancelling deletion of Pod a/b", 3)], {}, {}),
    ("what everybody's pods have", [event("Pulled", "Successfully pulled", 1), event("Started", "", 2), event("Killing", "Stopping container trainer", 3)], {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("events", "claims", "known"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_events_tell(events, claims, known) -> None:
    assert reduce(events, claims, T + 60) == EventsSeen(read=T + 60, **known)


def test_recorders_of_the_newer_kind_are_read_too() -> None:
    told = {
        "metadata": {"creationTimestamp": stamp(T)},
        "reason": "TriggeredScaleUp",
        "note": "pod triggered scale-up",
        "eventTime": "2026-11-23T10:00:01.123456Z",
        "series": {"count": 3, "lastObservedTime": "2026-11-23T10:00:09.000000Z"},
    }
    assert reduce([event("NotTriggerScaleUp", "no", 5), told], {}, T).scale_up_since == pytest.approx(T + 1.123456)


def test_sentences_are_bounded() -> None:
    told = reduce([event("NotTriggerScaleUp", "x" * 5000), event("FailedMount", "y" * 5000)], {}, T)
    assert len(told.no_scale_up) == MAX_SENTENCE
    assert len(told.start_problem) == MAX_SENTENCE
