"""The trained state as copies in host memory: ordered behind the last transition, and never waited for without a limit.

Training takes a snapshot itself, between two steps. At SIGTERM another thread does, while the device may be in the
middle of a step, or may not answer at all: then the newest copy that lies in host memory is what can be saved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

_Taken = TypeVar("_Taken")


class HostCopies:
    """Copies tensors of one device to the host.

    On CUDA the copies go into pinned memory, on a stream of their own that waits for the last transition alone: not
    for the forward and backward passes which are queued behind it, and which do not change what is trained.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._changed = torch.cuda.Event() if self._stream is not None else None  # type: ignore[no-untyped-call]

    def changed(self) -> None:
        """Say that a transition has been queued; under the lock that it holds, on its thread."""
        if self._changed is not None:
            self._changed.record()

    def take(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return copies of *tensors* on the CPU, complete; under the same lock, from any thread."""
        import torch

        if self._stream is None or self._changed is None:
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._changed)
            copies = {
                name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach(), non_blocking=True)
                for name, tensor in tensors.items()
            }
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        done.synchronize()
        return copies


def within(seconds: float, take: Callable[[], _Taken]) -> _Taken | None:
    """Return what *take* returns, called in a thread of its own; None where that took longer than *seconds*.

    Raises what *take* raises. A thread that hangs in the device is left behind.
    """
    taken: list[_Taken] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            taken.append(take())
        except BaseException as error:  # raised again below
            raised.append(error)

    thread = threading.Thread(target=work, name="snapshot", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return taken[0] if taken else None
