"""What can end an attempt, in the words of the contract: exit code, reason, and a message that says what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lorafinetune.contract.event import MAX_MESSAGE
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.storage import errors

_CODES: Final[dict[type[errors.StorageError], ExitCode]] = {
    errors.AccessDenied: ExitCode.STORAGE_REFUSED,
    errors.BucketMissing: ExitCode.STORAGE_REFUSED,
    errors.NotFencing: ExitCode.INVALID,
    errors.OtherVersion: ExitCode.INVALID,
    errors.Unreachable: ExitCode.STORAGE_UNREACHABLE,
}

_NO_MEMORY: Final = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch's parts say where memory ran out; oneDNN says no more than that it could not create a primitive."""
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


@contextlib.contextmanager
def naming(field: str) -> Iterator[None]:
    """Let what the bucket refuses meanwhile begin with the *field* of the spec that leads to it."""
    try:
        yield
    except (errors.AccessDenied, errors.BucketMissing) as error:
        raise type(error)(f"{field}: {error}") from error


def disk_full(place: Path | None, why: str) -> Failure:
    """Return the failure of a disk without room; *place* is what could not be written, or a folder of its disk."""
    place = place or Path(tempfile.gettempdir())
    return Failure(
        ExitCode.DISK_FULL,
        "DiskFull",
        f"the disk of {place} is full: {why}, and {_free(place)} are free: give the pod's scratch volume more room (by "
        "hand: let scratch, or TMPDIR, name a larger disk), or put the base model on the node or into the image",
    )


def _free(place: Path) -> str:
    for folder in (place, *place.parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
    return "no MB"


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
        return disk_full(Path(error.filename) if error.filename else None, f"a write failed ({_first(error)})")
    return Failure(ExitCode.FAILED, "TrainerError", f"{type(error).__name__}: {_first(error)}")


def _is_out_of_memory(error: BaseException) -> bool:
    # By name, since torch may not have been imported yet; all but CUDA's allocator raise plain RuntimeErrors.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))
        or (isinstance(error, RuntimeError) and str(error) == "could not create a primitive")
    )


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
