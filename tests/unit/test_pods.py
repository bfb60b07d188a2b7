"""Attempts' pods: which are a run's (labels alone prove nothing), how they are made, and what is read of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.engine import edits
from lorafinetune.engine.decision import CreatePod
from lorafinetune.engine.observation import PodSeen, RunSeen
from lorafinetune.kube import pods, seen
from tests.unit.engine.given import pool, spec

RUN = RunSeen("team", "timber", "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0", 1, 0.0, has_finalizer=True)
ATTEMPT = "lorafinetune.io/attempt"


OWNER = {"apiVersion": "lorafinetune.io/v1alpha1", "kind": "LoRAFineTune", "name": "timber", "uid": RUN.uid}


def pod(
    *,
    name: str = "timber-0b1c2-2",
    namespace: str = "team",
    attempt: str | None = "2",
    owners: tuple[dict[str, Any], ...] = (OWNER | {"controller": True},),
    finalizers: tuple[str, ...] = (),
) -> dict[str, Any]:
    labels = {"lorafinetune.io/run-uid": RUN.uid} | ({ATTEMPT: attempt} if attempt is not None else {})
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"metadata": metadata | {"ownerReferences": list(owners), "finalizers": list(finalizers)}}


def test_an_attempts_pod_is_ours() -> None:
    assert pods.is_ours(pod(), RUN)


def test_what_we_make_is_ours_as_it_is_made() -> None:
    """So that a pod which was made just before the operator died is adopted by the next one."""
    assert pods.is_ours(made(), RUN)


def test_a_run_that_is_deleted_with_its_pods_orphaned_still_knows_them() -> None:
    orphan = pod(owners=(), finalizers=(seen.POD_FINALIZER,))
    assert pods.is_ours(orphan, replace(RUN, deleting_since=5.0))
    assert not pods.is_ours(orphan, RUN)
    assert not pods.is_ours(pod(owners=()), replace(RUN, deleting_since=5.0))


@pytest.mark.parametrize(
    "foreign",
    [
        pod(namespace="another-team"),
        pod(name="copy-of-timber"),
        pod(attempt="3"),
        pod(attempt="x"),
        pod(attempt=""),
        pod(attempt=None),
        pod(owners=()),
        pod(owners=(OWNER,)),
        pod(owners=(OWNER | {"uid": "another", "controller": True},)),
        pod(attempt="0", name="timber-0b1c2-0"),
        pod(attempt="02", name="timber-0b1c2-02"),
        pod(attempt="٢", name="timber-0b1c2-2"),
        {"metadata": {"name": "bare", "namespace": "team"}},
    ],
)
def test_a_pod_that_only_carries_our_label_is_not(foreign: dict[str, Any]) -> None:
    assert not pods.is_ours(foreign, RUN)


def made(**changes: Any) -> dict[str, Any]:
    create = CreatePod(1, "spot", pool(), None, None)
    body = pods.build(RUN, spec(**changes), create, pods.Trainer(image="trainer"))
    return body | {"metadata": body["metadata"] | {"uid": "u", "creationTimestamp": "2026-11-23T08:00:00Z"}}


def test_a_pod_knows_what_it_was_made_from() -> None:
    wanted = {"checkpoint": {"everySteps": 7}}
    assert seen.pod_seen(made(**wanted)).settings == edits.settings(spec(**wanted))


def test_a_queue_is_a_label_for_kueue() -> None:
    label = "kueue.x-k8s.io/queue-name"
    assert made(queueName="team-queue")["metadata"]["labels"][label] == "team-queue"
    assert label not in made()["metadata"]["labels"]


def kueue(status: str, **words: str) -> PodSeen:
    """A pod as Kueue's webhook and controller leave it."""
    gate = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    body = made(queueName="team-queue")
    stopped = {"type": "TerminationTarget", "status": status, **words}
    return seen.pod_seen(body | {"spec": body["spec"] | gate, "status": {"conditions": [stopped]}})


def test_what_kueue_does_to_a_pod_is_seen() -> None:
    evicted = kueue("True", reason="WorkloadEvicted", message="Preempted to accommodate a workload")
    assert (evicted.gated, evicted.queue) == (True, "team-queue")
    assert evicted.queue_word == "Preempted to accommodate a workload"
    assert kueue("True", reason="WorkloadEvicted").queue_word == "WorkloadEvicted"
    assert kueue("False", reason="WorkloadEvicted").queue_word == ""
    assert not seen.pod_seen(made()).gated
