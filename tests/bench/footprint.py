"""What a process holds and takes: memory, seconds of the CPU, and the writes that it sends while nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psutil

from tests.bench.scrape import Writes

IDLE_SECONDS = 35.0
"""A living run is looked at every 30 s: so each is looked at once at least."""


@dataclass(frozen=True, slots=True)
class Idle:
    """One process over a while in which nothing happened. None: it had ended, and another one has had another life."""

    memory: float | None
    """MiB, resident, at the end."""
    processor: float | None
    """Share of one core, in percent."""


async def idle(
    processes: list[psutil.Process], look: Callable[[], Awaitable[Writes]], seconds: float = IDLE_SECONDS
) -> tuple[list[Idle], Writes]:
    """Leave everything alone for a while; return what each process took, and what the operator wrote."""
    before, writes = [_processor(one) for one in processes], await look()
    await asyncio.sleep(seconds)
    after = [_processor(one) for one in processes]
    spent = [
        100 * (end - begin) / seconds if begin is not None and end is not None else None
        for begin, end in zip(before, after, strict=True)
    ]
    found = [Idle(_memory(process), share) for process, share in zip(processes, spent, strict=True)]
    return found, (await look()).since(writes)


def _memory(process: psutil.Process) -> float | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.memory_info().rss / 2**20
    return None


def _processor(process: psutil.Process) -> float | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return None
