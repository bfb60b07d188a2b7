"""The status of a GPUPool: what all runs together know of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lorafinetune.api.instants import Timestamp
from lorafinetune.api.status import MAX_MESSAGE
from lorafinetune.contract.model import OpenModel


class PoolState(StrEnum):
    """How a pool stands."""

    OPEN = "Open"
    DRY = "Dry"
    FULL = "Full"


class GPUPoolStatus(OpenModel):
    """What is known of the pool. Written by the operator only, for people: no decision is taken from it."""

    state: PoolState | None = None
    """Open (attempts go there), Dry (it was found to have no node, and is tried again later) or Full (as many attempts
    as maxConcurrentAttempts allows are on it)."""
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] | None = None
    """Why, in one line, and until when."""
    live: Annotated[int, Field(ge=0)] | None = None
    """Attempts that are on it, or wait for a node of it."""
    waiting: Annotated[int, Field(ge=0)] | None = None
    """Those of them that have no node yet."""
    dry_since: Timestamp | None = None
    """When it was last found dry; absent once it has given a node since."""
    last_placed: Timestamp | None = None
    """When it last gave a node to an attempt."""
    last_taken: Timestamp | None = None
    """When it last took one back."""
    lifetime: Annotated[str, Field(max_length=16)] | None = None
    """How long its nodes last until they are taken back, in the mean of the last days."""
