"""What can end an attempt, in the words of the contract: exit code, reason, and a message that says what to do."""

from __future__ import annotations

import errno
from typing import Final

from lorafinetune.contract.event import MAX_MESSAGE
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.storage import errors

_CODES: Final[dict[type[errors.StorageError], ExitCode]] = {
    errors.AccessDenied: ExitCode.INVALID,
    errors.BucketMissing: ExitCode.INVALID,
    errors.NotFencing: ExitCode.INVALID,
    errors.OtherVersion: ExitCode.INVALID,
    errors.Unreachable: ExitCode.STORAGE_UNREACHABLE,
}

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk that is full."""


class Failure(Exception):  # noqa: N818 - the end of an attempt, by whatever cause
    """The attempt cannot go on."""

    def __init__(self, code: ExitCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message[:MAX_MESSAGE]


def invalid(reason: str, message: str) -> Failure:
    """Return the failure that only the user can mend: no retry will."""
    return Failure(ExitCode.INVALID, reason, message)


def explain(error: BaseException) -> Failure:
    """Return *error* as a failure; one that nobody foresaw becomes FAILED with its type and text."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Fenced | HeadLost):
        return Failure(ExitCode.FENCED, type(error).__name__, str(error))
    if isinstance(error, errors.StorageError):
        kind = next((one for one in _CODES if isinstance(error, one)), type(error))
        return Failure(_CODES.get(kind, ExitCode.FAILED), kind.reason, str(error))
    if _is_out_of_memory(error):
        return Failure(
            ExitCode.OUT_OF_MEMORY,
            "OutOfMemory",
            "out of memory: set training.gradientCheckpointing: true, or lower training.batchSize (and raise "
            f"training.gradientAccumulation as much), or training.resolution, or choose a larger GPU ({_first(error)})",
        )
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return Failure(
            ExitCode.STORAGE_UNREACHABLE,
            "DiskFull",
            f"a disk of this machine is full ({_first(error)}): give the pod's scratch volume more room, or put the "
            "base model on the node or into the image",
        )
    return Failure(ExitCode.FAILED, "TrainerError", f"{type(error).__name__}: {_first(error)}")


def _is_out_of_memory(error: BaseException) -> bool:
    # By name, since torch may not have been imported yet; its CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (
            isinstance(error, RuntimeError)
            and ("DefaultCPUAllocator" in str(error) or "CUDA out of memory" in str(error))
        )
    )


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
