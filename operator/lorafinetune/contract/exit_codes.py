"""How a trainer ends, in one number: the codes lie outside 0-2 and 126-165, which shells and signals use."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The trainer's exit codes; any other non-zero code is a training error."""

    FINISHED = 0
    """The artifact is committed. The operator verifies it all the same."""
    FAILED = 1
    """A training error: an exception nobody foresaw."""
    OUT_OF_MEMORY = 71
    """The GPU or the host ran out of memory; a retry on the same pool would end alike."""
    NOT_FINITE = 72
    """Loss, gradient or state stayed NaN or infinite: so they would in every attempt from the same checkpoint."""
    DISK_FULL = 73
    """A disk of the node is full: infrastructure, the next node may have more room."""
    STORAGE_UNREACHABLE = 74
    """The bucket (or the hub) did not answer within its limit: infrastructure, worth another attempt."""
    YIELDED = 75
    """SIGTERM was obeyed: what there was to save is saved, the termination message says what."""
    FENCED = 76
    """The head names another attempt, or is a tombstone: this one may not commit, and costs no budget."""
    STORAGE_REFUSED = 77
    """The bucket denies the keys, or is gone: worth another attempt once it answers."""
    INVALID = 78
    """The user's input cannot work (data set, base model, configuration): no retry will mend it."""
