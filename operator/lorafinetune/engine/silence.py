"""Silent nodes: when their attempts are replaced at once, and when that is held for a while.

One silent node is a lost node. Many at once, or any just after we could not see, are more likely alive behind a
control plane that cannot hear them: to replace them all would pay for every run twice. What ends for certain (a pod
that says so, a node whose object is gone) is never taken for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorafinetune.engine.observation import ClusterSeen, NodeSeen, PodSeen

SETTLING: Final = 30.0
"""Seconds after which an unbroken view counts: kubelets report every 10 s, the node controller looks every 5 s, and
trainers speak every few seconds, so by then all that is alive has been heard."""
MANY: Final = 3
"""Silent nodes at least, for a partition: one or two are bad luck."""
MANY_SHARE: Final = 0.3
"""Share of the nodes with attempts that is silent, for a partition."""
RECENT: Final = 120.0
"""Seconds for which a silence counts as new: nodes that stay dead for days are no partition of today."""
LONGEST_HOLD: Final = 90.0
"""Seconds of a node's silence after which its attempts are replaced in any case. A control plane that fails over is
back by then; a GPU's start costs about as much as waiting longer would save."""


@dataclass(frozen=True, slots=True)
class Held:
    """A replacement that is not made yet."""

    seconds: float
    """For so long at most."""
    why: str


def held(pod: PodSeen, node: NodeSeen | None, cluster: ClusterSeen, now: float) -> Held | None:
    """Say whether the replacement of *pod*, silent on its silent *node* (None: its object is gone), has to wait."""
    settled = cluster.unbroken_since + SETTLING
    if now < settled:
        return Held(settled - now, "the operator has only just (again) a whole view of the cluster")
    if node is None:
        return None  # its cloud was asked, and said that there is no such machine
    since = node.not_ready_since if node.not_ready_since is not None else pod.created
    left = since + LONGEST_HOLD - now
    if left > 0 and cluster.silent >= MANY and cluster.silent > MANY_SHARE * cluster.nodes:
        why = (
            f"{cluster.silent} of {cluster.nodes} nodes with attempts went silent together, so the control plane may "
            "be cut off from them"
        )
        return Held(left, why)
    return None
