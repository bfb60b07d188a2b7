"""Nodes on which the run has failed: its next attempts keep away from them for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from lorafinetune.api.status import AttemptStatus
from lorafinetune.engine.classify import HEAD_LOST, STORAGE_REASONS, Cause
from lorafinetune.engine.moves import AVOIDED
from lorafinetune.engine.times import instant

AVOID: Final = 3600.0
"""Seconds for which a node is avoided: a disk is full, or a driver wedged, until somebody has looked at it."""
UNPUBLISHED: Final = "ArtifactMissing"
"""Reason of an attempt that ended well, and whose artifact is not there."""
MOST: Final = 8
"""Nodes that are avoided at once."""


def nodes(attempts: Sequence[AttemptStatus], now: float) -> tuple[str, ...]:
    """Return the nodes of the last failures that a node may be the reason of; none where no others were found."""
    found: list[str] = []
    for one in reversed(attempts):
        if one.cause == Cause.NO_CAPACITY and one.reason == AVOIDED:
            break
        if one.ended is None or now - instant(one.ended) >= AVOID or not one.node or one.node in found:
            continue
        if one.cause in (Cause.INFRASTRUCTURE, Cause.OUT_OF_MEMORY) and not _elsewhere(one.reason):
            found.append(one.node)
    return tuple(sorted(found[:MOST]))


def _elsewhere(reason: str | None) -> bool:
    """Whether what failed was not the node: the bucket, the head, or an artifact of fewer steps than are wanted now."""
    return reason in {HEAD_LOST, UNPUBLISHED} or reason in STORAGE_REASONS
