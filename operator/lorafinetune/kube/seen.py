"""From Kubernetes' objects to what the engine sees of them. No decision is taken here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

from pydantic import ValidationError

from lorafinetune.contract.event import EventType, Termination
from lorafinetune.engine import notices
from lorafinetune.engine.notices import Marks
from lorafinetune.engine.observation import EventsSeen, NodeSeen, PodSeen, RunSeen
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
ANNOTATION_SETTINGS: Final = "lorafinetune.io/settings"
ANNOTATION_ASKS_FOR: Final = "lorafinetune.io/asks-for"
LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label: the LocalQueue that has to admit the pod."""
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


def pool_of(pod: Object) -> str:
    """Return the name of the pool that an attempt's pod was made for."""
    return str((pod["metadata"].get("labels") or {}).get(LABEL_POOL, ""))


def is_over(pod: Object) -> bool:
    """Whether its trainer has ended, or can never start: what the engine says of :class:`PodSeen`, at less cost."""
    status = pod.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return True
    if any(one["name"] == CONTAINER and one.get("state", {}).get("terminated") for one in _containers(status)):
        return True
    return "deletionTimestamp" in pod["metadata"] and not pod.get("spec", {}).get("nodeName")


def booked(run: Object) -> Callable[[Object], bool]:
    """Return what tells of a run's pod whether its attempt's end is written down, or was so long ago."""
    attempts = (run.get("status") or {}).get("attempts") or ()
    known = {one["number"]: bool(one.get("cause")) for one in attempts}
    first = min(known, default=0)

    def is_booked(pod: Object) -> bool:
        number = int(pod["metadata"]["labels"][LABEL_ATTEMPT])
        return known.get(number, number < first)

    return is_booked


def waits(pod: Object) -> bool:
    """Whether it has no node yet, and no queue holds it back."""
    spec = pod.get("spec", {})
    return not spec.get("nodeName") and not spec.get("schedulingGates")


def _containers(status: Object) -> list[Object]:
    return status.get("containerStatuses") or []


def pod_seen(pod: Object, told: EventsSeen | None = None) -> PodSeen:
    """Return what an attempt's pod tells: its container's state, its conditions, its marks, and what events *told*."""
    metadata, status = pod["metadata"], pod.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    container: Object = next((one for one in status.get("containerStatuses", ()) if one["name"] == CONTAINER), {})
    state = container.get("state", {})
    ended: Object = state.get("terminated") or {}
    waiting: Object = state.get("waiting") or {}
    started = ended.get("startedAt") or (state.get("running") or {}).get("startedAt")
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    # One that is False was taken back: the disruption controller clears what no deletion has followed.
    disruption, queued = (
        one if (one := conditions.get(kind, {})).get("status") == "True" else {}
        for kind in ("DisruptionTarget", notices.QUEUE_CONDITION)
    )
    scheduled = conditions.get("PodScheduled", {})
    over = bool(ended) or status.get("phase") in ("Succeeded", "Failed")
    return PodSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=int(labels[LABEL_ATTEMPT]),
        pool=pool_of(pod),
        phase=status.get("phase", "Pending"),
        created=instant(metadata["creationTimestamp"]),
        node=pod.get("spec", {}).get("nodeName"),
        bound=_true_since(scheduled),
        started=instant(started) if started else None,
        ended=(instant(ended["finishedAt"]) if ended.get("finishedAt") else _last_change(pod)) if over else None,
        deleting="deletionTimestamp" in metadata,
        deleting_since=_deletion_asked(metadata),
        has_finalizer=POD_FINALIZER in metadata.get("finalizers", ()),
        exit_code=ended.get("exitCode"),
        container_reason=ended.get("reason", ""),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        pod_reason=status.get("reason", ""),
        pod_message=status.get("message", ""),
        gated=bool(pod.get("spec", {}).get("schedulingGates")),
        queue=labels.get(LABEL_QUEUE, ""),
        settings=annotations.get(ANNOTATION_SETTINGS, ""),
        asks_for=annotations.get(ANNOTATION_ASKS_FOR, ""),
        disruption=(disruption.get("reason") or "DisruptionTarget") if disruption else "",
        disruption_since=_true_since(disruption),
        unschedulable=(scheduled.get("message") or "no node fits")
        if scheduled.get("reason") == "Unschedulable"
        else "",
        queue_word=(queued.get("message") or queued.get("reason") or "stopped by its queue") if queued else "",
        termination=_last_words(ended),
        capacity_type=annotations.get(ANNOTATION_CAPACITY, ""),
        price_per_hour=annotations.get(ANNOTATION_PRICE, ""),
        on_demand_price_per_hour=annotations.get(ANNOTATION_ON_DEMAND_PRICE, ""),
        avoids="affinity" in pod.get("spec", {}),
        events_read=told.read if told is not None else None,
        scale_up_since=told.scale_up_since if told is not None else None,
        no_scale_up=told.no_scale_up if told is not None else "",
        insufficient_capacity=told.insufficient_capacity if told is not None else "",
        start_problem=told.start_problem if told is not None else "",
        platform_word=told.platform_word if told is not None else "",
        platform_message=told.platform_message if told is not None else "",
    )


def node_seen(node: Object, marks: Marks = notices.DEFAULT) -> NodeSeen:
    """Return whether a node is alive, and whether its cloud has announced its end by one of *marks*."""
    metadata, spec, status = node["metadata"], node.get("spec", {}), node.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    ready = conditions.get("Ready", {})
    since = ready.get("lastTransitionTime")
    taints = {one["key"]: one for one in spec.get("taints", ())}
    true = {kind: one.get("message") or "" for kind, one in conditions.items() if one.get("status") == "True"}
    notice = marks.notice({key: one.get("value") or "" for key, one in taints.items()}, true)
    asked = _instant_or_none(metadata.get("deletionTimestamp"))
    noticed_at = _noticed_at(taints.get(notice, {}), conditions.get(notice, {})) or asked
    if not notice and asked is not None:
        notice = notices.DELETING
    if not notice and ready.get("status") != "True" and notices.SHUTTING_DOWN in (ready.get("message") or ""):
        notice, noticed_at = "Shutdown", instant(since) if since else None
    annotated = metadata.get("annotations", {}).get(notices.TERMINATION_TIME)
    created = metadata.get("creationTimestamp")
    return NodeSeen(
        name=metadata["name"],
        ready=ready.get("status") == "True",
        not_ready_since=instant(since) if since and ready.get("status") != "True" else None,
        notice=notice,
        notice_since=noticed_at,
        deadline=_instant_or_none(annotated) or notices.deadline_in(true.get(notice, "")),
        uid=metadata.get("uid", ""),
        boot_id=status.get("nodeInfo", {}).get("bootID", ""),
        created=instant(created) if created else None,
        cordoned=bool(spec.get("unschedulable")),
        taints=tuple(sorted(taints)),
        capacity_type=notices.capacity_type(metadata.get("labels", {})),
    )


def _noticed_at(taint: Object, condition: Object) -> float | None:
    """Return when a mark was set: its own time, or a value that is one."""
    if taint.get("key") == notices.SINCE_VALUE and str(taint.get("value", "")).isdigit():
        return float(taint["value"])
    return _instant_or_none(taint.get("timeAdded") or condition.get("lastTransitionTime"))


def _instant_or_none(text: str | None) -> float | None:
    """Return the Unix seconds of a time that anybody may have written."""
    if not text:
        return None
    try:
        return instant(text)
    except ValueError:
        return None


def _deletion_asked(metadata: Object) -> float | None:
    """Return when a deletion was asked for: its timestamp is that of the grace's end."""
    until = metadata.get("deletionTimestamp")
    return instant(until) - (metadata.get("deletionGracePeriodSeconds") or 0) if until else None


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
