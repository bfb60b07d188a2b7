"""The cases of endings.yaml: raw Kubernetes objects that change fact by fact, seen through ``kube.seen``."""

from __future__ import annotations

import copy
import datetime
import email.utils
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lorafinetune.api.status import ArtifactStatus, AttemptStatus, LoRAFineTuneStatus
from lorafinetune.contract.event import Event
from lorafinetune.contract.head import ArtifactEntry
from lorafinetune.engine.notices import Marks
from lorafinetune.engine.observation import ArtifactChecked, EventsSeen, NodeSeen, Observation, PodSeen
from lorafinetune.engine.progress import Progress, fold
from lorafinetune.engine.times import stamp
from lorafinetune.kube import evidence, seen
from tests.unit.engine import given

Object = dict[str, Any]

END = given.NOW
"""When the trainer's container ends."""
STEPS = 500
PLAIN = given.seen(pools={"pool": given.pool()})
SUSPENDED = given.seen(pools={"pool": given.pool()}, spec=given.spec(suspend=True))
_TIME = re.compile(r"^T([+-]\d+)?$")
_IN_TEXT = re.compile(r"\{T([+-]\d+)? (rfc1123|unix)\}")
_KEYS = {"conditions": "type", "taints": "key"}


@dataclass(frozen=True)
class Case:
    """One way to end, with one end of the trainer's container."""

    name: str
    facts: tuple[Object, ...]
    cause: str
    reasons: tuple[str, ...]
    spends: str
    body: Object = field(repr=False)

    @property
    def vanishes(self) -> bool:
        """Whether facts are lost on the way, with the object that carries them."""
        return any("node" in fact and fact["node"] is None for fact in self.facts)


def cases() -> Iterator[Case]:
    """Read the file: one case for each of its codes."""
    body = yaml.safe_load((Path(__file__).parent / "endings.yaml").read_text(encoding="utf-8"))
    for one in body["cases"]:
        for code in one["codes"]:
            end: Object = code if isinstance(code, dict) else {"code": None if code == "none" else code}
            want, causes = one["want"], _listed(one["want"]["cause"])
            cause = causes[0] if len(causes) == 1 or end["code"] is not None else "NodeLost"
            facts = [dated(fact) for fact in one["facts"]]
            if end["code"] is not None:
                facts = _reported(facts, dated(_ended(**end)))
            if end["code"] == 0:
                facts.append({"at": 3, "artifact": bool(one.get("artifact"))})
            said = "".join(f", {end[key]}" for key in ("container", "reason") if key in end)
            yield Case(
                f"{one['name']} ({end['code']}{said})",
                tuple(sorted(facts, key=lambda fact: fact["at"])),
                cause,
                tuple(_listed(want["reason"])),
                want["spends"],
                one,
            )


def _reported(facts: list[Object], end: Object) -> list[Object]:
    """Return the facts with the container's end: a kubelet writes that and what it says of the pod in one."""
    report: Object = {"at": 0, "pod": copy.deepcopy(end)}
    for fact in facts:
        if fact["at"] == 0 and "pod" in fact:
            merge(report["pod"], fact["pod"])
    return [*(fact for fact in facts if fact["at"] != 0 or "pod" not in fact), report]


def dated(value: Any) -> Any:
    """Return *value* with its times written out."""
    if isinstance(value, dict):
        return {key: dated(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [dated(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if (found := _TIME.match(value)) is not None:
        return stamp(END + int(found[1] or 0))
    return _IN_TEXT.sub(_written, value)


def _written(found: re.Match[str]) -> str:
    moment = END + int(found[1] or 0)
    if found[2] == "unix":
        return str(int(moment))
    return email.utils.format_datetime(datetime.datetime.fromtimestamp(moment, datetime.UTC), usegmt=True)


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _ended(code: int, container: str = "", reason: str = "", message: str = "") -> Object:
    """What the kubelet writes when the trainer's container has ended."""
    words = f'{{"exitCode": {code}, "step": 37, "durableStep": 37, "reason": "{reason}", "message": "{message}"'
    words += ', "saved": "new"}' if code == 75 else "}"
    terminated = {
        "exitCode": code,
        "reason": container or ("Completed" if code == 0 else "Error"),
        "startedAt": "T-600",
        "finishedAt": "T",
        "message": words if reason or code == 75 else message,
    }
    status = {"name": "trainer", "state": {"terminated": terminated}}
    return {"status": {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]}}


def merge(into: Object, change: Object) -> None:
    """Put *change* into an object as its writers do."""
    for key, value in change.items():
        if key in _KEYS:
            named = {one[_KEYS[key]]: one for one in into.get(key, [])} | {one[_KEYS[key]]: one for one in value}
            into[key] = list(named.values())
        elif isinstance(value, dict):
            merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


class Scene:
    """The world of one case, as far as the operator sees it, and the status that it has written."""

    def __init__(self, case: Case) -> None:
        body = case.body
        pool = body.get("pool", "Spot")
        started, bound = body.get("started", True), body.get("bound", True)
        self.marks = Marks.with_more(
            body.get("marks", {}).get("taints", ()), body.get("marks", {}).get("conditions", ())
        )
        self.pod: Object = dated(
            {
                "metadata": {
                    "name": "timber-1",
                    "uid": "pod-1",
                    "creationTimestamp": "T-650",
                    "labels": {seen.LABEL_ATTEMPT: "1", seen.LABEL_POOL: "pool"},
                    "annotations": {seen.ANNOTATION_CAPACITY: pool},
                    "finalizers": [seen.POD_FINALIZER],
                },
                "spec": {"nodeName": "node-a"} if bound else {},
                "status": {
                    "phase": "Running" if started and bound else "Pending",
                    "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "T-640"}],
                    "containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": "T-600"}}}]
                    if started and bound
                    else [],
                },
            }
        )
        self.node: Object | None = dated(
            {
                "metadata": {
                    "name": "node-a",
                    "uid": "node-1",
                    "creationTimestamp": "T-9000",
                    "labels": body.get("labels", {}),
                },
                "spec": {"taints": body.get("taints", [])},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "T-8990"}],
                    "nodeInfo": {"bootID": "boot-1"},
                },
            }
        )
        self.events: list[Object] = []
        self.progress: Progress | None = None
        self.storage = given.READY
        self.base = SUSPENDED if body.get("suspended") else PLAIN
        # What spec.suspend ends has it written down before its pod is deleted.
        why = {"stopping": "Suspended", "reason": "Suspended", "message": "suspended by spec.suspend"}
        self._parts: tuple[PodSeen, dict[str, NodeSeen]] | None = None
        self.status = LoRAFineTuneStatus(
            attempt=1,
            start_time=stamp(END - 700),
            attempts=[
                AttemptStatus(
                    number=1,
                    pod="timber-1",
                    pool="pool",
                    capacity_type=pool,
                    created=stamp(END - 650),
                    **(why if body.get("suspended") else {}),
                )
            ],
        )

    def learn(self, fact: Object) -> None:
        """Take one fact."""
        self._parts = None
        if "pod" in fact:
            merge(self.pod, copy.deepcopy(fact["pod"]))
        if "node" in fact:
            if fact["node"] is None:
                self.node = None
            elif self.node is not None:
                merge(self.node, copy.deepcopy(fact["node"]))
        if "event" in fact:
            self.events.append({"metadata": {"creationTimestamp": stamp(END + fact["at"])}, **fact["event"]})
        if "word" in fact:
            told = {"runUid": given.UID, "attempt": 1, "sequence": 9, "step": 37, **fact["word"]}
            self.progress = fold(Progress(1), Event.model_validate(told), END + fact["at"])
        if "head" in fact:
            entry = ArtifactEntry(attempt=1, step=fact["head"]["step"], manifest_sha256="0" * 64)
            self.storage = replace(self.storage, published=entry)
        if "artifact" in fact:
            there = fact["artifact"]
            found = ArtifactStatus(uri="s3://loras/a/", file="x", sha256="0" * 64, size=1) if there else None
            reason, words = ("Verified", "every byte") if there else ("ArtifactMissing", "the head names no artifact")
            checked = ArtifactChecked(there, True, reason, words, END + 3, STEPS, found)
            self.storage = replace(self.storage, artifact=checked)

    def observe(self, now: float) -> Observation:
        """Return what is so at *now*."""
        if self._parts is None:
            told: EventsSeen | None = evidence.reduce(self.events, {}, now) if self.events else None
            node = seen.node_seen(self.node, self.marks) if self.node is not None else None
            self._parts = (seen.pod_seen(self.pod, told), {"node-a": node} if node is not None else {})
        pod, nodes = self._parts
        return replace(
            self.base,
            status=self.status,
            pods=(pod,),
            nodes=nodes,
            progress=self.progress,
            storage=self.storage,
            now=now,
        )
