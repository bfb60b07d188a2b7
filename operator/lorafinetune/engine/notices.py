"""The marks by which clouds and controllers tell what they do to a node or a pod: data, one line each, with its source.

A mark that is missing here is added by the operator's configuration (``--notice-taint``, ``--notice-condition``).
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from lorafinetune.api.gpupool import CapacityType


class Mark(NamedTuple):
    """A taint or a condition by which the end of a node is announced; an empty value means any."""

    key: str
    value: str
    cloud: str
    source: str


_TAINT_MARKS: Final = (
    Mark("karpenter.sh/disrupted", "", "Karpenter v1", "Karpenter docs, disruption"),
    Mark("karpenter.sh/disruption", "disrupting", "Karpenter v1beta1", "Karpenter v1beta1 docs, disruption"),
    Mark("aws-node-termination-handler/spot-itn", "", "AWS NTH", "NTH pkg/node/node.go"),
    Mark("aws-node-termination-handler/scheduled-maintenance", "", "AWS NTH", "NTH pkg/node/node.go"),
    Mark("aws-node-termination-handler/asg-lifecycle-termination", "", "AWS NTH", "NTH pkg/node/node.go"),
    Mark("cloud.google.com/impending-node-termination", "", "GKE", "GKE docs, GPU host maintenance"),
    Mark("remediator.kubernetes.azure.com/unschedulable", "", "AKS", "AKS docs, node auto-drain"),
    Mark("ToBeDeletedByClusterAutoscaler", "", "Cluster Autoscaler", "cluster-autoscaler utils/taints"),
    Mark("node.cloudprovider.kubernetes.io/shutdown", "", "cloud controller managers", "cloud-provider docs"),
    Mark("node.kubernetes.io/out-of-service", "", "people and fencing controllers", "Kubernetes docs, node shutdown"),
)
"""Not among them, for they announce no end: ``DeletionCandidateOfClusterAutoscaler`` (a candidate only),
``aws-node-termination-handler/rebalance-recommendation`` (advice), ``node.kubernetes.io/unschedulable`` (a cordon)."""

_CONDITION_MARKS: Final = (
    Mark("PreemptionScheduled", "", "AKS", "AKS docs, node problem detector"),
    Mark("GCESpotPreempting", "", "GCE, self-managed", "karpenter-provider-gcp PR #563"),
)
"""Not among them: ``VMEventScheduled`` of AKS, which also tells of reboots and freezes."""

ADVICE: Final = "SpotRebalanceRecommendation"
"""AKS sets ``PreemptionScheduled`` for mere advice too; the message begins with this word then."""

TAINTS: Final = frozenset(mark.key for mark in _TAINT_MARKS)
CONDITIONS: Final = frozenset(mark.key for mark in _CONDITION_MARKS)

TERMINATION_TIME: Final = "karpenter.sh/nodeclaim-termination-timestamp"
"""Karpenter's annotation: after that time it ends the node whatever runs on it."""
SINCE_VALUE: Final = "ToBeDeletedByClusterAutoscaler"
"""A taint whose value is the Unix time at which it was set."""
DELETING: Final = "deletionTimestamp"
"""The mark of a Node that is being deleted and held by its provisioner until it is drained."""
SHUTTING_DOWN: Final = "node is shutting down"
"""What a kubelet says in its Ready condition from the moment at which its machine is told to power off."""

CAPACITY_LABELS: Final = (
    ("karpenter.sh/capacity-type", "spot", CapacityType.SPOT),
    ("karpenter.sh/capacity-type", "on-demand", CapacityType.ON_DEMAND),
    ("karpenter.sh/capacity-type", "reserved", CapacityType.ON_DEMAND),
    ("eks.amazonaws.com/capacityType", "SPOT", CapacityType.SPOT),
    ("eks.amazonaws.com/capacityType", "ON_DEMAND", CapacityType.ON_DEMAND),
    ("cloud.google.com/gke-spot", "true", CapacityType.SPOT),
    ("cloud.google.com/gke-preemptible", "true", CapacityType.SPOT),
    ("cloud.google.com/gke-provisioning", "spot", CapacityType.SPOT),
    ("cloud.google.com/gke-provisioning", "standard", CapacityType.ON_DEMAND),
    ("kubernetes.azure.com/scalesetpriority", "spot", CapacityType.SPOT),
)
"""Labels by which nodes say what they are."""

QUEUE_CONDITION: Final = "TerminationTarget"
"""The condition that Kueue sets on a plain pod whose place it takes back (KEP-976)."""

SCALING_UP: Final = frozenset({"TriggeredScaleUp", "Nominated"})
"""Events of a pod: Cluster Autoscaler and Karpenter are making a node for it."""
NOT_SCALING_UP: Final = (("NotTriggerScaleUp", ""), ("FailedScheduling", "Failed to schedule pod"))
"""The same two say that they will not; the second word is the scheduler's too, in other sentences."""
NO_CAPACITY: Final = "FailedScaleUp"
"""GKE: the cloud had no machine, or no quota for one."""
NODE_CLAIM: Final = "nodeclaim/"
"""Karpenter's name, in ``Nominated``, of what it asks its cloud for."""
CLAIM_FAILED: Final = "InsufficientCapacityError"
"""Event of a NodeClaim: the cloud had no machine for it."""
NOT_STARTING: Final = frozenset({"FailedCreatePodSandBox", "FailedMount", "FailedAttachVolume"})
"""Events of a pod that its node cannot start."""
ENDING_WORDS: Final = (
    ("Preempted", "", "scheduler: by a pod of higher priority"),
    ("Preempting", "", "kubelet: to admit a critical pod"),
    ("TaintManagerEviction", "Marking for deletion", "taint manager; it also tells of deletions that it cancels"),
    ("Evicted", "", "kubelet: node pressure; Karpenter: draining"),
    ("SpotInterrupted", "", "Karpenter"),
    ("NodeNotReady", "", "node controller"),
)
"""Events that tell why a pod ended, the surest first: reason, how the sentence begins, by whom."""

_DATE: Final = re.compile(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} (?:GMT|UTC)")


@dataclass(frozen=True, slots=True)
class Marks:
    """Which taints and conditions count as the announcement of a node's end: ours, and the administrator's."""

    taints: frozenset[str] = TAINTS
    conditions: frozenset[str] = CONDITIONS

    @classmethod
    def with_more(cls, taints: Iterable[str], conditions: Iterable[str]) -> Marks:
        """Return ours with those of the operator's configuration."""
        return cls(TAINTS | set(taints), CONDITIONS | set(conditions))

    def notice(self, taints: Mapping[str, str], conditions: Mapping[str, str]) -> str:
        """Return the first mark among a node's taints (key to value) and true conditions (type to message), or ""."""
        found = sorted(key for key in self.taints & taints.keys() if _fits(key, taints[key]))
        found += sorted(
            kind for kind in self.conditions & conditions.keys() if not conditions[kind].strip().startswith(ADVICE)
        )
        return found[0] if found else ""


DEFAULT: Final = Marks()


def capacity_type(labels: Mapping[str, str]) -> str:
    """Return Spot or OnDemand, as a node's labels say; the empty string where they do not."""
    return next((str(kind.value) for label, value, kind in CAPACITY_LABELS if labels.get(label) == value), "")


def deadline_in(message: str) -> float | None:
    """Return the RFC 1123 time in a condition's message (AKS: when the machine goes), as Unix seconds."""
    found = _DATE.search(message)
    if found is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(found[0].replace("UTC", "GMT")).timestamp()
    except ValueError:
        return None


def _fits(key: str, value: str) -> bool:
    wanted = next((mark.value for mark in _TAINT_MARKS if mark.key == key), "")
    return not wanted or wanted == value
