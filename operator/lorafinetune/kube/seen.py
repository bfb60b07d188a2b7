"""From Kubernetes' objects to what the engine sees of them. No decision is taken here."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

from pydantic import ValidationError

from lorafinetune.contract.event import EventType, Termination
from lorafinetune.engine.notices import notice
from lorafinetune.engine.observation import NodeSeen, PodSeen, RunSeen
from lorafinetune.engine.times import instant

Object = dict[str, Any]

RUN_FINALIZER: Final = "lorafinetune.io/storage"
"""On the run: its storage is not collected yet."""
POD_FINALIZER: Final = "lorafinetune.io/attempt"
"""On an attempt's pod: its end is not written into the run's status yet."""
LABEL_RUN: Final = "lorafinetune.io/run"
LABEL_RUN_UID: Final = "lorafinetune.io/run-uid"
LABEL_ATTEMPT: Final = "lorafinetune.io/attempt"
LABEL_POOL: Final = "lorafinetune.io/pool"
ANNOTATION_CAPACITY: Final = "lorafinetune.io/capacity-type"
ANNOTATION_PRICE: Final = "lorafinetune.io/price-per-hour"
ANNOTATION_ON_DEMAND_PRICE: Final = "lorafinetune.io/on-demand-price-per-hour"
CONTAINER: Final = "trainer"


def run_seen(run: Object) -> RunSeen:
    """Return the resource's metadata as the engine wants it."""
    metadata = run["metadata"]
    deleted = metadata.get("deletionTimestamp")
    return RunSeen(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        created=instant(metadata["creationTimestamp"]),
        deleting_since=instant(deleted) if deleted else None,
        has_finalizer=RUN_FINALIZER in metadata.get("finalizers", ()),
    )


def pod_seen(pod: Object) -> PodSeen:
    """Return what an attempt's pod tells: its container's state, its conditions, and its marks."""
    metadata, status = pod["metadata"], pod.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    container: Object = next((one for one in status.get("containerStatuses", ()) if one["name"] == CONTAINER), {})
    state = container.get("state", {})
    ended: Object = state.get("terminated") or {}
    waiting: Object = state.get("waiting") or {}
    started = ended.get("startedAt") or (state.get("running") or {}).get("startedAt")
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    disruption = conditions.get("DisruptionTarget", {})
    scheduled = conditions.get("PodScheduled", {})
    over = bool(ended) or status.get("phase") in ("Succeeded", "Failed")
    return PodSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=int(labels[LABEL_ATTEMPT]),
        pool=labels.get(LABEL_POOL, ""),
        phase=status.get("phase", "Pending"),
        created=instant(metadata["creationTimestamp"]),
        node=pod.get("spec", {}).get("nodeName"),
        bound=_true_since(scheduled),
        started=instant(started) if started else None,
        ended=(instant(ended["finishedAt"]) if ended.get("finishedAt") else _last_change(pod)) if over else None,
        deleting="deletionTimestamp" in metadata,
        has_finalizer=POD_FINALIZER in metadata.get("finalizers", ()),
        exit_code=ended.get("exitCode"),
        container_reason=ended.get("reason", ""),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        pod_reason=status.get("reason", ""),
        pod_message=status.get("message", ""),
        disruption=(disruption.get("reason") or "DisruptionTarget") if disruption.get("status") == "True" else "",
        unschedulable=(scheduled.get("message") or "no node fits")
        if scheduled.get("reason") == "Unschedulable"
        else "",
        termination=_last_words(ended),
        capacity_type=annotations.get(ANNOTATION_CAPACITY, ""),
        price_per_hour=annotations.get(ANNOTATION_PRICE, ""),
        on_demand_price_per_hour=annotations.get(ANNOTATION_ON_DEMAND_PRICE, ""),
    )


def node_seen(node: Object) -> NodeSeen:
    """Return whether a node is alive, and whether its cloud has announced its end."""
    conditions = {one["type"]: one for one in node.get("status", {}).get("conditions", ())}
    ready = conditions.get("Ready", {})
    since = ready.get("lastTransitionTime")
    return NodeSeen(
        name=node["metadata"]["name"],
        ready=ready.get("status") == "True",
        not_ready_since=instant(since) if since and ready.get("status") != "True" else None,
        notice=notice(
            [taint["key"] for taint in node.get("spec", {}).get("taints", ())],
            {kind: one.get("status", "") for kind, one in conditions.items()},
        ),
    )


def _true_since(condition: Object) -> float | None:
    since = condition.get("lastTransitionTime")
    return instant(since) if since and condition.get("status") == "True" else None


def _last_change(pod: Object) -> float:
    """Return the last time that is written on a pod which ended without a container's word."""
    times = [one.get("lastTransitionTime") for one in pod.get("status", {}).get("conditions", ())]
    times.append(pod["metadata"]["creationTimestamp"])
    return max(instant(one) for one in times if one)


def _last_words(ended: Object) -> Termination | None:
    """Return the trainer's termination message; where a crash left log lines instead, what the last of them says.

    One that was cut off in the middle says nothing; of a newer trainer's, reason and message count.
    """
    text = (ended.get("message") or "").strip()
    if not text:
        return None
    with contextlib.suppress(ValidationError):
        return Termination.model_validate_json(text)
    line = text.splitlines()[-1]
    reason, message = "", line
    if line.startswith("{"):
        try:
            said = json.loads(line)
        except ValueError:
            return None
        if said.get("type", EventType.FAILED) != EventType.FAILED:
            return None
        reason, message = (str(said.get(name) or "") for name in ("reason", "message"))
    return Termination(exit_code=ended.get("exitCode", 1), reason=reason[:64], message=message[:1024])
