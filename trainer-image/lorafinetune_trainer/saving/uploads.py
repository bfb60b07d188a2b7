"""One checkpoint on its way to the bucket: how fast it goes, and how it is given up for a newer one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

SURPLUS: Final = 1.25
"""An upload may take that much longer than the one before it."""
BUFFERED: Final = 4 * 1024 * 1024
"""Bytes of one connection that may lie in the kernel, sent and not gone: what it allows itself by default."""


class GivenUp(BaseException):
    """The upload is not wanted any more. No Exception: whoever tries again after errors must not after this one."""


class Upload:
    """A save under way. Its threads tell what they send and ask whether to go on; another thread may give it up."""

    def __init__(self, size: int) -> None:
        """*size* is that of all its tensors, in bytes."""
        self.size = size
        self.sent = 0
        """Bytes that were handed to the connection."""
        self._started = time.monotonic()
        self._senders: set[int] = set()
        self._unwanted = threading.Event()
        self._lock = threading.Lock()

    @property
    def gone(self) -> int:
        """Bytes that have certainly left this machine."""
        return max(0, self.sent - BUFFERED * len(self._senders))

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self._started

    def give_up(self) -> None:
        """Let it end at its next piece; from any thread."""
        self._unwanted.set()

    def go_on(self, count: int = 0) -> None:
        """Count *count* bytes that are sent next; raises GivenUp if the upload has been given up."""
        if self._unwanted.is_set():
            raise GivenUp
        with self._lock:
            self.sent += count
            if count:
                self._senders.add(threading.get_ident())

    def rest(self, seconds: float) -> None:
        """Wait before another try; raises GivenUp as soon as the upload has been given up."""
        if self._unwanted.wait(seconds):
            raise GivenUp


class Pace:
    """How fast this attempt's checkpoints have gone."""

    def __init__(self) -> None:
        self._seconds_per_byte: float | None = None

    def learn(self, upload: Upload) -> None:
        """Remember an upload that came to its end; one whose bytes were there already says nothing."""
        if 0 < upload.size <= upload.sent:
            self._seconds_per_byte = upload.seconds / upload.size

    def estimate(self, size: int, under_way: Upload | None = None) -> float | None:
        """Return the seconds for *size* bytes, from the last upload or else from one *under_way*; None if unknown."""
        if self._seconds_per_byte is not None:
            return size * self._seconds_per_byte * SURPLUS
        if under_way is not None and under_way.gone:
            return size * under_way.seconds / under_way.gone * SURPLUS
        return None


def size_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the bytes of all *tensors*."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
