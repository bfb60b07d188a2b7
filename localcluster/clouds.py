"""The clouds that nodes play: how their nodes look, and what they do when they take one back.

Labels, taints and signs are those of the clouds' documents and agents; they are data here, so that a new cloud is a
new entry.
"""

from __future__ import annotations

import platform
import uuid
from dataclasses import dataclass, field

from localcluster.nodespec import SPOT, NodeSpec, Taint


@dataclass(frozen=True, slots=True)
class Reclaim:
    """How a cloud takes a node back: the signs it sets, in which order, and what becomes of the Node object."""

    notice: float
    """Seconds between the first sign and the end of the machine, unless told otherwise."""
    taints: tuple[Taint, ...] = ()
    cordon: bool = False
    """Whether `spec.unschedulable` is set."""
    conditions: tuple[tuple[str, str, str], ...] = ()
    """(type, reason, message) of node conditions that turn True; `{deadline}` in the message is an RFC 1123 time."""
    event: tuple[str, str] | None = None
    """(reason, message) of an event on the node."""
    evict: bool = False
    """Whether pods are evicted through the eviction API."""
    honours_do_not_disrupt: bool = False
    """Whether pods that carry `karpenter.sh/do-not-disrupt` are not evicted."""
    graceful_shutdown: bool = False
    """Whether the machine gets a power-off notice and the kubelet ends its pods (15 s of every 30 s are theirs)."""
    ends_when_drained: bool = False
    """Whether the machine ends as soon as no pod runs on it any more, without using up the notice."""
    delete_first: bool = False
    """Whether the Node is deleted at the start and held by a finalizer until the machine has ended."""
    delete_after: bool = True
    """Whether the Node object goes when the machine has ended; else it stays and turns NotReady."""
    same_name: bool = False
    """Whether a replacement has the name of the node that it replaces."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud."""

    reclaim: Reclaim
    pool_label: str
    spot_labels: dict[str, str] = field(default_factory=dict)
    on_demand_labels: dict[str, str] = field(default_factory=dict)
    spot_taints: tuple[Taint, ...] = ()
    finalizers: tuple[str, ...] = ()
    provider: str = "local:///{zone}/{machine}"


GPU_TAINT = Taint("nvidia.com/gpu", "present", "NoSchedule")
SHUTDOWN_TAINT = Taint("node.cloudprovider.kubernetes.io/shutdown", "", "NoSchedule")
"""What a cloud's controller puts on the Node of a machine that exists and is switched off."""
KARPENTER_FINALIZER = "karpenter.sh/termination"

CLOUDS: dict[str, Cloud] = {
    "eks-karpenter": Cloud(
        reclaim=Reclaim(
            notice=120.0,
            taints=(Taint("karpenter.sh/disrupted", "", "NoSchedule"),),
            event=("SpotInterrupted", "Spot interruption warning was triggered"),
            evict=True,
            honours_do_not_disrupt=True,
            ends_when_drained=True,
            delete_first=True,
        ),
        pool_label="karpenter.sh/nodepool",
        spot_labels={"karpenter.sh/capacity-type": "spot"},
        on_demand_labels={"karpenter.sh/capacity-type": "on-demand"},
        finalizers=(KARPENTER_FINALIZER,),
        provider="aws:///{zone}/i-{machine}",
    ),
    "eks-managed": Cloud(
        reclaim=Reclaim(notice=120.0, cordon=True, evict=True),
        pool_label="eks.amazonaws.com/nodegroup",
        spot_labels={"eks.amazonaws.com/capacityType": "SPOT"},
        on_demand_labels={"eks.amazonaws.com/capacityType": "ON_DEMAND"},
        provider="aws:///{zone}/i-{machine}",
    ),
    "gke": Cloud(
        reclaim=Reclaim(notice=30.0, graceful_shutdown=True, delete_after=False, same_name=True),
        pool_label="cloud.google.com/gke-nodepool",
        spot_labels={"cloud.google.com/gke-spot": "true", "cloud.google.com/gke-provisioning": "spot"},
        on_demand_labels={"cloud.google.com/gke-provisioning": "standard"},
        spot_taints=(Taint("cloud.google.com/gke-spot", "true", "NoSchedule"),),
        provider="gce://local/{zone}/{machine}",
    ),
    "aks": Cloud(
        reclaim=Reclaim(
            notice=30.0,
            taints=(Taint("remediator.kubernetes.azure.com/unschedulable", "", "NoSchedule"),),
            conditions=(
                ("VMEventScheduled", "VMEventScheduled", "Preempt is scheduled for {deadline}"),
                ("PreemptionScheduled", "SpotEvictionIncoming", "Spot eviction is scheduled for {deadline}"),
            ),
            evict=True,
        ),
        pool_label="kubernetes.azure.com/agentpool",
        spot_labels={"kubernetes.azure.com/scalesetpriority": "spot"},
        spot_taints=(Taint("kubernetes.azure.com/scalesetpriority", "spot", "NoSchedule"),),
        provider="azure:///subscriptions/local/{machine}",
    ),
    "generic": Cloud(
        reclaim=Reclaim(notice=30.0, cordon=True, evict=True),
        pool_label="localcluster.lorafinetune.io/pool",
        spot_labels={"localcluster.lorafinetune.io/capacity-type": "spot"},
        on_demand_labels={"localcluster.lorafinetune.io/capacity-type": "on-demand"},
    ),
}


def cloud_of(spec: NodeSpec) -> Cloud:
    """Return the cloud that a node plays. Raises ValueError for one that is unknown."""
    if spec.cloud not in CLOUDS:
        raise ValueError(f"cloud {spec.cloud!r} is unknown: choose one of {', '.join(CLOUDS)}")
    return CLOUDS[spec.cloud]


def architecture() -> str:
    """Return this machine's architecture as Kubernetes calls it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def labels_of(spec: NodeSpec) -> dict[str, str]:
    """Return all labels of a node."""
    cloud = cloud_of(spec)
    spot = spec.capacity_type == SPOT
    labels = {
        "kubernetes.io/hostname": spec.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
        "node.kubernetes.io/instance-type": f"local.{spec.gpus}x" + (spec.product.lower() if spec.gpus else "cpu"),
        "topology.kubernetes.io/region": "local",
        "topology.kubernetes.io/zone": spec.zone,
        cloud.pool_label: spec.pool,
        **(cloud.spot_labels if spot else cloud.on_demand_labels),
    }
    if spec.gpus:
        labels |= {
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.product": spec.product,
            "nvidia.com/gpu.count": str(spec.gpus),
            "nvidia.com/gpu.memory": str(spec.gpu_memory_gib * 1024),
        }
    labels |= spec.labels
    return {name: value for name, value in labels.items() if value}


def taints_of(spec: NodeSpec) -> list[Taint]:
    """Return all taints with which a node registers."""
    cloud = cloud_of(spec)
    taints = list(cloud.spot_taints) if spec.capacity_type == SPOT else []
    if spec.gpus:
        taints.append(GPU_TAINT)
    return taints + [Taint.parse(text) for text in spec.taints]


def capacity_of(spec: NodeSpec) -> dict[str, str]:
    """Return what a node can hold."""
    capacity = {"cpu": str(spec.cpus), "memory": f"{spec.memory_gib}Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    return capacity | ({"nvidia.com/gpu": str(spec.gpus)} if spec.gpus else {})


def provider_id(spec: NodeSpec) -> str:
    """Return a new machine's identity."""
    return cloud_of(spec).provider.format(zone=spec.zone, machine=uuid.uuid4().hex[:17])
