"""Marks of clouds on nodes: which count, since when, until when; and what a node says of its capacity."""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

from typing import Any

import pytest

from lorafinetune.engine.notices import Marks
from lorafinetune.engine.times import instant
from lorafinetune.kube.seen import node_seen

AT = "2026-11-23T10:00:00Z"


def node(taints: list[dict[str, Any]] | None = None, conditions: list[dict[str, Any]] | None = None, **metadata: Any):
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-23T09:00:00Z"}
    return {
        "metadata": {"name": "node-a", "uid": "u", **metadata},
        "spec": {"taints": taints or []},
        "status": {"conditions": [ready, *(conditions or [])], "nodeInfo": {"bootID": "b"}},
    }


def aks(message: str) -> dict[str, Any]:
    return {"type": "PreemptionScheduled", "status": "True", "message": message, "lastTransitionTime": AT}


ROWS = [
    # name, node, notice, since, deadline
    ("nothing", node(), "", None, None),
    ("Karpenter v1", node([{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]), "karpenter.sh/disrupted", None, None),
    ("Karpenter v1, Node deleted, with its end", node([{"key": "karpenter.sh/disrupted"}], deletionTimestamp=AT, annotations={"karpenter.sh/nodeclaim-termination-timestamp": "2026-11-23T10:02:00Z"}), "karpenter.sh/disrupted", 0, 120),
    ("an end that is no time", node([{"key": "karpenter.sh/disrupted"}], annotations={"karpenter.sh/nodeclaim-termination-timestamp": "soon"}), "karpenter.sh/disrupted", None, None),
    ("Karpenter v1beta1", node([{"key": "karpenter.sh/disruption", "value": "disrupting"}]), "karpenter.sh/disruption", None, None),
    ("Karpenter v1beta1, another value", node([{"key": "karpenter.sh/disruption", "value": "candidate"}]), "", None, None),
    ("autoscaler, its value is the time", node([{"key": "ToBeDeletedByClusterAutoscaler", "value": str(int(instant(AT)))}]), "ToBeDeletedByClusterAutoscaler", 0, None),
    ("autoscaler, a candidate", node([{"key": "DeletionCandidateOfClusterAutoscaler", "value": "1"}]), "", None, None),
    ("NTH, advice", node([{"key": "aws-node-termination-handler/rebalance-recommendation", "value": "x"}]), "", None, None),
    ("a cordon", node([{"key": "node.kubernetes.io/unschedulable", "timeAdded": AT}]), "", None, None),
    ("AKS, with a deadline", node(conditions=[aks("Preempt Scheduled: Mon, 23 Nov 2026 10:00:30 GMT. EventId: 1")]), "PreemptionScheduled", 0, 30),
    ("AKS, a day of one digit", node(conditions=[aks("Preempt Scheduled: Tue, 1 Dec 2026 10:00:00 GMT.")]), "PreemptionScheduled", 0, 8 * 86400),
    ("AKS, a date that is none", node(conditions=[aks("Preempt Scheduled: Mon, 99 Nov 2026 10:00:30 GMT.")]), "PreemptionScheduled", 0, None),
    ("AKS, started", node(conditions=[aks("Preempt Started.")]), "PreemptionScheduled", 0, None),
    ("AKS, advice", node(conditions=[aks("SpotRebalanceRecommendation Advisory: Mon, 23 Nov 2026 10:05:00 GMT.")]), "", None, None),
    ("AKS, over again", node(conditions=[aks("") | {"status": "False"}]), "", None, None),
    ("AKS, any event", node(conditions=[aks("") | {"type": "VMEventScheduled"}]), "", None, None),
    ("a Node that is being deleted", node(deletionTimestamp=AT), "deletionTimestamp", 0, None),
    ("a kubelet that shuts down", node(conditions=[{"type": "Ready", "status": "False", "message": "node is shutting down", "lastTransitionTime": AT}]), "Shutdown", 0, None),
    ("a kubelet that is ill", node(conditions=[{"type": "Ready", "status": "False", "message": "container runtime is down", "lastTransitionTime": AT}]), "", None, None),
]  # fmt: skip


@pytest.mark.parametrize(("given", "notice", "since", "until"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_mark(given, notice: str, since: float | None, until: float | None) -> None:
    found = node_seen(given)
    assert found.notice == notice
    assert found.notice_since == (instant(AT) + since if since is not None else None)
    assert found.deadline == (instant(AT) + until if until is not None else None)
    assert found.machine == "u/b"


def test_the_administrator_adds_marks_and_takes_none_away() -> None:
    marks = Marks.with_more(["example.com/reclaim"], ["Reclaim"])
    for taint in ("example.com/reclaim", "karpenter.sh/disrupted"):
        assert node_seen(node([{"key": taint}]), marks).notice == taint
    for kind in ("Reclaim", "PreemptionScheduled"):
        assert node_seen(node(conditions=[aks("") | {"type": kind}]), marks).notice == kind
    assert node_seen(node([{"key": "example.com/reclaim"}])).notice == ""


@pytest.mark.parametrize(
    ("labels", "capacity"),
    [
        ({}, ""),
        ({"karpenter.sh/capacity-type": "spot"}, "Spot"),
        ({"karpenter.sh/capacity-type": "reserved"}, "OnDemand"),
        ({"eks.amazonaws.com/capacityType": "SPOT"}, "Spot"),
        ({"eks.amazonaws.com/capacityType": "ON_DEMAND"}, "OnDemand"),
        ({"cloud.google.com/gke-spot": "true"}, "Spot"),
        ({"cloud.google.com/gke-preemptible": "true"}, "Spot"),
        ({"kubernetes.azure.com/scalesetpriority": "spot"}, "Spot"),
        ({"kubernetes.azure.com/scalesetpriority": "regular"}, ""),
    ],
)
def test_capacity(labels: dict[str, str], capacity: str) -> None:
    assert node_seen(node(labels=labels)).capacity_type == capacity
