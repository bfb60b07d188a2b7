"""The two that are compared: a run of ours, and a Job that is told as well as can be that preemptions are no failures.

Both make pods that no node takes: none is there, so that only the controllers are measured.
"""

from __future__ import annotations

import datetime
from typing import Any, Protocol

from examples.stage import Stage

Object = dict[str, Any]

NAMESPACE = "bench"
AGE = datetime.timedelta(seconds=60)
"""How long an interrupted attempt claims to have run. Ours waits a little after attempts that died within 10 s of their
start (STILLBORN in engine/budgets.py), which is policy for flapping nodes and not what is measured here."""


class Contender(Protocol):
    """One kind of object that keeps one pod going."""

    collection: str
    """Path of the objects in the API."""
    container: str
    """The name of its pods' container."""

    def body(self, name: str) -> Object:
        """Return the object to create."""

    def settled(self, thing: Object, pods: int) -> bool:
        """Return whether its controller has written down that the *pods*-th pod is there."""


class Run:
    """A LoRAFineTune with all its real parts: Secret, bucket, data set, pool."""

    collection = f"/apis/lorafinetune.io/v1alpha1/namespaces/{NAMESPACE}/lorafinetunes"
    container = "trainer"

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def body(self, name: str) -> Object:
        return self._stage.run(NAMESPACE, name, storage={"onDelete": "DeleteAll"})

    def settled(self, thing: Object, pods: int) -> bool:
        return bool((thing.get("status") or {}).get("attempt") == pods)


class Job:
    """A Job whose disruptions are ignored by its failure policy, so that it goes on for ever as a run does."""

    collection = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    container = "trainer"

    def body(self, name: str) -> Object:
        ignore = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        container = {
            "name": self.container,
            "image": "trainer",
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "backoffLimit": 1_000_000,
                "podFailurePolicy": {"rules": [ignore]},
                "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
            },
        }

    def settled(self, thing: Object, pods: int) -> bool:
        status = thing.get("status") or {}
        waiting = status.get("uncountedTerminatedPods") or {}
        return status.get("active") == 1 and not any(waiting.values())


def interruption(container: str, now: datetime.datetime) -> Object:
    """Return the status that an evicted pod is left with: Failed, DisruptionTarget, its container ended by SIGTERM."""
    moment, started = (one.strftime("%Y-%m-%dT%H:%M:%SZ") for one in (now, now - AGE))
    ended = {"exitCode": 143, "reason": "Error", "startedAt": started, "finishedAt": moment}
    return {
        "status": {
            "phase": "Failed",
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting",
                    "lastTransitionTime": moment,
                }
            ],
            "containerStatuses": [
                {
                    "name": container,
                    "image": "trainer",
                    "imageID": "",
                    "ready": False,
                    "restartCount": 0,
                    "state": {"terminated": ended},
                }
            ],
        }
    }
