"""Short words for observations: what the tables of the engine's tests are written in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus, LostStatus, Totals
from lorafinetune.engine.ending import PREEMPTIONS
from lorafinetune.engine.evidence import Evidence
from lorafinetune.engine.observation import NodeSeen, Observation, PodSeen, RunSeen, StorageChecked, StorageSeen, Tidied
from lorafinetune.engine.times import stamp

NOW = 1_800_000_000.0
UID = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"


def spec(**changes: Any) -> LoRAFineTuneSpec:
    """The smallest spec of 500 steps, with *changes* by their JSON names."""
    body: dict[str, Any] = {
        "baseModel": {"source": "hf://stabilityai/stable-diffusion-xl-base-1.0"},
        "dataset": {"source": "s3://data/timber/"},
        "training": {"steps": 500},
        "storage": {"uri": "s3://loras/", "credentialsSecret": "r2"},
    }
    return LoRAFineTuneSpec.model_validate(body | changes)


def pool(
    price: str = "0.348",
    *,
    capacity: str = "Spot",
    default: bool = True,
    product: str = "RTX-4090",
    memory: int | None = None,
    namespaces: list[str] | None = None,
    most: int | None = None,
    timeout: str = "10m",
) -> GPUPoolSpec:
    body: dict[str, Any] = {
        "capacityType": capacity,
        "nodeSelector": {"pool": "x"},
        "gpu": {"product": product, "memoryGiB": memory},
        "pricePerHour": price,
        "default": default,
        "allowedNamespaces": namespaces,
        "maxConcurrentAttempts": most,
        "provisioningTimeout": timeout,
    }
    return GPUPoolSpec.model_validate(body)


def pod(attempt: int = 1, **changes: Any) -> PodSeen:
    """A running attempt's pod on node-a, held by our finalizer."""
    plain = PodSeen(
        name=f"timber-0b1c2-{attempt}",
        uid=f"pod-{attempt}",
        attempt=attempt,
        pool="spot",
        phase="Running",
        created=NOW - 100,
        node="node-a",
        started=NOW - 90,
        has_finalizer=True,
        capacity_type="Spot",
        price_per_hour="0.348",
    )
    return replace(plain, **changes)


def ended(attempt: int = 1, exit_code: int | None = 137, **changes: Any) -> PodSeen:
    """A pod whose container ended just now."""
    return pod(attempt, **({"phase": "Failed", "exit_code": exit_code, "ended": NOW - 1} | changes))


def evidence(pod: PodSeen, node: NodeSeen | None, **facts: Any) -> Evidence:
    """What is known of that pod's end, at NOW."""
    return Evidence(**({"pod": pod, "node": node, "now": NOW, "steps": 500} | facts))


def attempt(number: int = 1, **changes: Any) -> AttemptStatus:
    plain = AttemptStatus(
        number=number,
        pod=f"timber-0b1c2-{number}",
        pod_uid=f"pod-{number}",
        pool="spot",
        capacity_type="Spot",
        price_per_hour="0.348",
        created=stamp(NOW - 100),
        started=stamp(NOW - 90),
    )
    return plain.model_copy(update=changes)


def status(*attempts: AttemptStatus, **changes: Any) -> LoRAFineTuneStatus:
    """A started run's. *preemptions* of which no attempt tells stand in the totals, where they are counted from."""
    newest = attempts[-1].number if attempts else None
    untold = changes.get("preemptions", 0) - sum(one.cause in PREEMPTIONS for one in attempts)
    if untold > 0 and "totals" not in changes:
        changes["totals"] = Totals(lost=[LostStatus(cause="Preempted", attempts=untold)])
    plain = LoRAFineTuneStatus(attempts=list(attempts), attempt=newest, start_time=stamp(NOW - 200))
    return plain.model_copy(update=changes)


READY = StorageSeen(
    checked=StorageChecked(True, "Ready", "s3://loras/ can be written", NOW - 200),
    marked=Tidied(True, "Marked", "the mark is there", NOW - 200),
    read=NOW - 200,
)


def seen(**changes: Any) -> Observation:
    """A held run with a ready bucket, one default spot pool, and nothing else."""
    run = RunSeen("default", "timber", UID, 1, NOW - 300, has_finalizer=True)
    plain = Observation(
        run=run,
        spec=spec(),
        status=status(),
        pods=(),
        nodes={"node-a": NodeSeen("node-a", ready=True)},
        pools={"spot": pool()},
        now=NOW,
        storage=READY,
    )
    if "run" in changes:
        changes["run"] = replace(run, **changes["run"])
    return replace(plain, **changes)
