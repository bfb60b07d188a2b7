"""Copies of the training state on the host, made while the device goes on computing, and never waited for without end.

On a GPU a copy must wait for the update that it is of, and for nothing that was asked of the device after it: so each
update leaves an event, and the copy runs on a stream of its own that waits for that event.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch

POLL: Final = 0.001
"""Seconds between two looks at a copy that is under way: waiting inside CUDA could not be given a limit."""


@contextmanager
def held(lock: threading.Lock, limit: float) -> Iterator[None]:
    """Hold *lock*; TimeoutError where it is not free within *limit* seconds."""
    if not lock.acquire(timeout=limit):
        raise TimeoutError(f"the step that is being taken has not ended within {limit:g} s")
    try:
        yield
    finally:
        lock.release()


class Copier:
    """Copies from one device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        cuda: Any = torch.cuda  # its classes are not typed
        self._stream: Any = cuda.Stream(device) if self._cuda else None
        self._event: Any = cuda.Event
        self._updated: Any = None

    def mark(self) -> None:
        """Say that what was asked of the device up to now is an update: copies wait for it. By the training thread."""
        if self._cuda:
            self._updated = self._event()
            self._updated.record()

    def copy(self, tensors: Mapping[str, torch.Tensor], limit: float) -> dict[str, torch.Tensor]:
        """Return copies of *tensors* on the CPU; TimeoutError where the device takes longer than *limit* seconds.

        The caller keeps the tensors from being changed meanwhile.
        """
        if not self._cuda:
            return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        copies = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for name, tensor in tensors.items()
        }
        done = self._event()
        with torch.cuda.stream(self._stream):
            if self._updated is not None:
                self._stream.wait_event(self._updated)
            for name, tensor in tensors.items():
                copies[name].copy_(tensor, non_blocking=True)
            done.record(self._stream)
        deadline = time.monotonic() + limit
        while not done.query():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the device has not answered within {limit:g} s")
            time.sleep(POLL)
        return copies


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
