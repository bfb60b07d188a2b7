"""Runs in a queue of the real Kueue: held back for want of quota, let in, and put out for a pod of higher priority."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.stage import Stage
from localcluster.images import SHELL
from tests.e2e.kueue import kueue, queue
from tests.e2e.test_run import LONG, Object, attempt_of, condition, pods, training

QUEUE = "team-queue"
SOON = 120.0


def important(home: str) -> list[Object]:
    """Return a pod that may take a run's place, and its priority."""
    container = {
        "name": "sleep",
        "image": SHELL,
        "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    spec = {
        "containers": [container],
        "priorityClassName": "important",
        "nodeSelector": {"lorafinetune.io/demo-pool": "spot"},
        "tolerations": [{"operator": "Exists"}],
        "restartPolicy": "Never",
    }
    priority = {"metadata": {"name": "important"}, "value": 1000}
    labels = {"kueue.x-k8s.io/queue-name": QUEUE}
    return [
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", **priority},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "important", "namespace": home, "labels": labels},
            "spec": spec,
        },
    ]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_runs_in_a_real_queue(stage: Stage, home: str, tmp_path: Path) -> None:
    def status(name: str) -> Object:
        return stage.status(home, name)

    def running(name: str) -> bool:
        told = status(name)
        return bool(told.get("conditions")) and condition(told, "Running")["status"] == "True"

    def queued(name: str) -> Object | None:
        told = status(name)
        return told if told.get("activity") == "Queued" else None

    with kueue(stage, tmp_path):
        stage.wait("the queue is made", lambda: _made(stage, home), 60)
        place = {"placement": {"pools": ["spot"]}, "queueName": QUEUE}
        stage.cluster.apply(stage.run(home, "first", **place, **training(LONG)))
        stage.wait("the first is let in", lambda: running("first"), SOON)
        stage.cluster.apply(stage.run(home, "second", **place, **training(LONG)))
        waits = stage.wait("the second is held back", lambda: queued("second"), SOON)
        assert waits["phase"] == "Starting"
        assert f"waits for Kueue's queue {QUEUE} to let it go on" in waits["message"]
        held = next(pod for pod in pods(stage, home) if "second" in pod["metadata"]["name"])
        assert {"name": "kueue.x-k8s.io/admission"} in held["spec"]["schedulingGates"]
        assert held["metadata"]["labels"]["kueue.x-k8s.io/managed"] == "true"

        stage.cluster.apply(*important(home))
        stage.wait("the first is put out", lambda: attempt_of(stage, home, "first", 1).get("cause"), SOON)
        ended = attempt_of(stage, home, "first", 1)
        assert (ended["cause"], ended["reason"], ended["exitCode"]) == ("Preempted", "KueueEvicted", 75), ended
        assert "Kueue took its quota back" in ended["message"], ended
        assert ended["durableStep"] >= ended["toStep"] - 1, "its work was saved"
        stage.wait("it is in the queue again", lambda: queued("first"), SOON)
        assert len([pod for pod in pods(stage, home) if not pod["spec"].get("schedulingGates")]) <= 2, "the other's"

        # Only what really held the place can hand it on.
        stage.wait("the important one runs", lambda: _phase(stage, home, "important") == "Running", SOON)
        stage.cluster.kubectl("delete", "pod", "important", "-n", home, "--wait=false")
        stage.wait("the place goes to who has waited longest", lambda: running("second"), SOON)
        assert queued("first") is not None
        queue(stage, home, QUEUE, gpus=3)
        stage.wait("both are let in", lambda: running("first") and running("second"), SOON)
        assert attempt_of(stage, home, "first", 2)["fromStep"] == ended["durableStep"]
        assert [one["number"] for one in status("second")["attempts"]] == [1]
        assert not status("first").get("failures")
        for name in ("first", "second"):
            stage.cluster.kubectl("delete", "lft", name, "-n", home, "--timeout=50s")
        stage.wait("nobody holds a pod", lambda: not pods(stage, home), SOON)


def _phase(stage: Stage, home: str, name: str) -> str:
    path = "jsonpath={.status.phase}"
    return stage.cluster.kubectl("get", "pod", name, "-n", home, "-o", path)


def _made(stage: Stage, home: str) -> bool:
    queue(stage, home, QUEUE, gpus=1)
    return True
