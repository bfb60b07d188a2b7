"""An attempt whose pod never reported its end: when it counts as lost with its node."""

from __future__ import annotations

from typing import Final

from lorafinetune.engine.ending import Cause, Ending, Hold
from lorafinetune.engine.evidence import is_another
from lorafinetune.engine.observation import NodeSeen, PodSeen
from lorafinetune.engine.progress import Progress

LOST_AFTER: Final = 10.0
"""Seconds of a node's silence (after it turned NotReady) and of its trainer's, before the attempt counts as lost."""


def is_lost(
    pod: PodSeen, node: NodeSeen | None, *, progress: Progress | None, now: float, machine: str = ""
) -> Ending | Hold | None:
    """Say whether a pod that never reported its end has been lost with its node; None = no sign of it.

    A trainer that still sends authenticated events is alive, whatever its node says. *machine* is the one that the
    attempt was first seen on: another one of the same name has lost it, however ready it is.
    """
    if pod.is_over or not pod.node:
        return None
    replaced = node is not None and is_another(node, machine, pod)
    if node is not None and node.ready and not replaced:
        return None
    # A node that we have not heard of yet looks like one that is gone: the pod's binding gives it time.
    since = pod.bound if pod.bound is not None else pod.created
    if node is not None:
        since = (node.created if replaced else node.not_ready_since) or since
    heard = progress.heard if progress is not None and progress.attempt == pod.attempt else 0.0
    quiet = now - max(since, heard)
    if quiet < LOST_AFTER:
        return Hold(LOST_AFTER - quiet)
    if node is None:
        return Ending(Cause.NODE_LOST, "NodeGone", f"{pod.node} is gone, and its trainer is silent")
    if replaced:
        return Ending(
            Cause.NODE_LOST, "NodeReplaced", f"{pod.node} is another machine by now, and its trainer is silent"
        )
    return Ending(
        Cause.NODE_LOST, "NodeNotReady", f"{pod.node} has been silent for {now - since:.0f} s, and so is its trainer"
    )
