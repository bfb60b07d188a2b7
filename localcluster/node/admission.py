"""Whether a node takes a pod that was bound to it, as a kubelet decides it. Pure."""

from __future__ import annotations

from typing import Any

from localcluster.node.environment import quantity

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
SHUTDOWN_REFUSAL = "Pod was rejected as the node is shutting down."


def gpus(pod: Json) -> int:
    """Return how many GPUs a pod asks for."""
    limits = (container.get("resources", {}).get("limits", {}) for container in pod["spec"]["containers"])
    return sum(int(quantity(limit.get(GPU, "0"))) for limit in limits)


def refusal(
    pod: Json, *, labels: dict[str, str], capacity: dict[str, str], gpus_in_use: int, shutting_down: bool
) -> tuple[str, str] | None:
    """Return reason and message of a refusal, or None."""
    if shutting_down:
        return "NodeShutdown", SHUTDOWN_REFUSAL
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return (
            "NodeAffinity",
            "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node selector",
        )
    wanted, total = gpus(pod), int(capacity.get(GPU, "0"))
    if wanted and gpus_in_use + wanted > total:
        message = "Pod was rejected: Node didn't have enough resource: "
        return f"OutOf{GPU}", f"{message}{GPU}, requested: {wanted}, used: {gpus_in_use}, capacity: {total}"
    return None
