"""Waiting for something to become true, with a limit and a reason: what tests do instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LOOK_SECONDS = 0.1


def eventually(probe: Callable[[], T | None], seconds: float, what: str) -> T:
    """Return the first truthy answer of `probe`. Raises TimeoutError that says `what` and what was seen last."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s; last seen: {found!r}")
        time.sleep(LOOK_SECONDS)
