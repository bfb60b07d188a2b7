"""The marks by which a cloud says that it will take a node: data, one line each, with its source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

TAINTS: Final = frozenset(
    {
        "karpenter.sh/disrupted",  # Karpenter v1, all clouds
        "karpenter.sh/disruption",  # Karpenter v1beta1
        "aws-node-termination-handler/spot-itn",  # AWS Node Termination Handler, spot interruption
        "aws-node-termination-handler/scheduled-maintenance",
        "aws-node-termination-handler/asg-lifecycle-termination",
        "cloud.google.com/impending-node-termination",  # GKE
        "remediator.kubernetes.azure.com/unschedulable",  # AKS auto-drain
        "ToBeDeletedByClusterAutoscaler",  # Cluster Autoscaler
        "node.cloudprovider.kubernetes.io/shutdown",  # cloud controller managers
        "node.kubernetes.io/out-of-service",
    }
)
CONDITIONS: Final = frozenset(
    {
        "PreemptionScheduled",  # AKS, node problem detector
        "GCESpotPreempting",  # GCE, self-managed
    }
)


def notice(taints: Collection[str], conditions: Mapping[str, str]) -> str:
    """Return the first mark among the node's taint keys and its conditions (type to status), or the empty string."""
    found = sorted(TAINTS & set(taints))
    found += sorted(kind for kind in CONDITIONS if conditions.get(kind) == "True")
    return found[0] if found else ""
