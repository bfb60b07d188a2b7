"""A pod's status as a kubelet writes it, from what the node knows of its containers. Pure."""

from __future__ import annotations

import datetime
from typing import Any

Json = dict[str, Any]
PENDING, RUNNING, SUCCEEDED, FAILED = "Pending", "Running", "Succeeded", "Failed"
TERMINAL = (SUCCEEDED, FAILED)
LOCATION = "The container could not be located when the pod was terminated"


def timestamp(seconds: float) -> str:
    """Return Unix seconds as Kubernetes writes times."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str = "") -> Json:
    """Return a container state."""
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def unknown_termination() -> Json:
    """Return the state of a container that ended while nobody looked."""
    return {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": LOCATION}}


def container_status(container: Json, **known: Any) -> Json:
    """Return one entry of `containerStatuses`; `known` overrides what a container has that never ran."""
    status: Json = {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0,
        "state": waiting("ContainerCreating"),
        "lastState": {},
    }
    return status | known


def exit_code(status: Json) -> int | None:
    """Return the exit code of a container that has ended."""
    ended = status["state"].get("terminated")
    return int(ended["exitCode"]) if ended else None


def phase(restart_policy: str, init: list[Json], containers: list[Json]) -> str:
    """Return the phase that the states of the containers mean while the pod is not being stopped."""
    initializing = next((status for status in init if exit_code(status) != 0), None)
    if initializing is not None:
        return FAILED if restart_policy == "Never" and exit_code(initializing) is not None else PENDING
    codes = [exit_code(status) for status in containers]
    # A container between two runs waits in CrashLoopBackOff: its pod is Running all the same.
    ran = any("running" in s["state"] or s["restartCount"] or s["lastState"] for s in containers)
    if any("running" in status["state"] for status in containers) or None in codes:
        return RUNNING if ran or any(code is not None for code in codes) else PENDING
    if restart_policy == "Always" or (restart_policy == "OnFailure" and any(codes)):
        return RUNNING
    return FAILED if any(codes) else SUCCEEDED


def final_phase(containers: list[Json]) -> str:
    """Return the phase of a pod whose containers have all been stopped."""
    return SUCCEEDED if containers and all(exit_code(status) == 0 for status in containers) else FAILED


def with_all_ended(statuses: list[Json]) -> list[Json]:
    """Return the statuses of a pod that is over: containers that never ran here count as ended unseen."""
    return [
        s if "terminated" in s["state"] else s | {"state": unknown_termination(), "ready": False, "started": False}
        for s in statuses
    ]


def conditions(current: str, init: list[Json], containers: list[Json], previous: list[Json], now: str) -> list[Json]:
    """Return the conditions that are a kubelet's to write; others' (DisruptionTarget) are left to them."""
    initialized = all(exit_code(status) == 0 for status in init)
    ready = current == RUNNING and bool(containers) and all(status["ready"] for status in containers)
    reason = ""
    if current == SUCCEEDED:
        reason = "PodCompleted"
    elif current == FAILED:
        reason = "PodFailed"
    elif not ready:
        reason = "ContainersNotReady"
    unready = [status["name"] for status in containers if not status["ready"]]
    message = f"containers with unready status: [{' '.join(unready)}]" if reason == "ContainersNotReady" else ""
    wanted: list[tuple[str, bool, str, str]] = [
        ("PodReadyToStartContainers", current == RUNNING, "", ""),
        ("Initialized", initialized or current == SUCCEEDED, "" if initialized else "ContainersNotInitialized", ""),
        ("Ready", ready, reason, message),
        ("ContainersReady", ready, reason, message),
    ]
    before = {condition["type"]: condition for condition in previous}
    found = []
    for kind, holds, why, what in wanted:
        status = "True" if holds else "False"
        old = before.get(kind, {})
        since = old["lastTransitionTime"] if old.get("status") == status else now
        entry: Json = {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": since}
        # null removes what an earlier write left, since conditions are merged by type
        found.append(entry | {"reason": why or None, "message": what or None})
    return found


def disruption_condition(message: str, now: str) -> Json:
    """Return the condition with which a kubelet says that it ended a pod itself."""
    return {
        "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message,
        "lastProbeTime": None, "lastTransitionTime": now,
    }  # fmt: skip
