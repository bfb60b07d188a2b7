"""An attempt that was given up for lost, and lives on a node that answers again: it ends before anything follows it."""

from __future__ import annotations

from typing import Final

from lorafinetune.engine.attempts import Settled
from lorafinetune.engine.evidence import is_another
from lorafinetune.engine.observation import PodSeen

ENDS_WITHIN: Final = 90.0
"""Seconds after its deletion within which a pod on a node that answers is over: its grace of 60, and some to tell."""


def is_back(now: Settled, pod: PodSeen) -> bool:
    """Whether *pod*, whose attempt is booked as ended, lives on a node that answers: it is waited for.

    Not for ever: a node that takes longer than the pod's grace is no better than a silent one, and storage fences.
    """
    node = now.seen.nodes.get(pod.node or "")
    machine = next((one.machine or "" for one in now.status.attempts if one.number == pod.attempt), "")
    if pod.is_over or node is None or not node.ready or is_another(node, machine, pod):
        return False
    return pod.deleting_since is None or now.seen.now - pod.deleting_since < ENDS_WITHIN
