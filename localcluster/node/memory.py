"""Ends containers that take more memory than their limit, as a kernel does with a cgroup."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from localcluster.node.container import Container

LOOK_SECONDS = 1.0


def used(pid: int) -> int:
    """Return the bytes that a process and its descendants hold for themselves (files and libraries not counted)."""
    total = 0
    with contextlib.suppress(psutil.Error):
        main = psutil.Process(pid)
        for process in [main, *main.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                memory = process.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total


async def watch_memory(containers: Callable[[], Iterable[Container]]) -> None:
    """Look at every running container that has a limit, for ever."""
    while True:
        for container in list(containers()):
            limit, process = container.memory_limit, container.process
            if limit and process and container.running and await asyncio.to_thread(used, process.pid) > limit:
                container.out_of_memory = True
                process.kill()
        await asyncio.sleep(LOOK_SECONDS)
