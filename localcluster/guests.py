"""Programs that whoever starts a cluster brings along, such as an operator beside it: they end with the cluster.

The supervisor holds them, so that they outlive the process that asked for them (a kept demo) and never the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.process import KeptProcess, StartError

log = logging.getLogger("localcluster.guests")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a guest that ended by itself is started again; doubled each time, as a kubelet does."""
WELL_AFTER = 60.0
"""A guest that ran this long starts with the first pause again."""


@dataclass(slots=True)
class Guest:
    """One program and how to start it again."""

    command: list[str]
    environment: dict[str, str]
    log: Path
    process: KeptProcess
    restarts: int = 0
    keeper: asyncio.Task[None] | None = None

    def show(self) -> dict[str, Any]:
        """Return what others may know."""
        ended = self.process.exit
        return {
            "pid": None if ended else self.process.pid,
            "code": ended.code if ended else None,
            "signal": ended.signal if ended else None,
            "restarts": self.restarts,
            "log": str(self.log),
        }


class Guests:
    """Starts, restarts and ends them. Each logs to `<directory>/<name>.log`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._guests: dict[str, Guest] = {}

    def show(self) -> dict[str, dict[str, Any]]:
        """Return each guest's pid (or how it ended), restarts and log."""
        return {name: guest.show() for name, guest in self._guests.items()}

    async def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, restart: bool = False
    ) -> dict[str, Any]:
        """Start one; with *restart*, again whenever it ends by itself. Raises ValueError, StartError."""
        known = self._guests.get(name)
        if known is not None and not known.process.exit:
            raise ValueError(f"{name} runs already, as pid {known.process.pid}")
        path = self.directory / f"{name}.log"
        await self._forget(name)
        try:
            process = await KeptProcess.start(list(command), env=environment, cwd=Path(os.sep), log=path)
        except StartError as error:
            raise ValueError(str(error)) from error
        guest = Guest(list(command), dict(environment), path, process)
        self._guests[name] = guest
        if restart:
            guest.keeper = asyncio.create_task(self._keep(name, guest))
        return guest.show()

    async def _keep(self, name: str, guest: Guest) -> None:
        pause = FIRST_PAUSE
        while True:
            begin = time.monotonic()
            ended = await guest.process.wait()
            pause = FIRST_PAUSE if time.monotonic() - begin >= WELL_AFTER else pause
            log.info("%s ended by itself (%s): starting it again in %g s", name, ended, pause)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)
            guest.restarts += 1
            with contextlib.suppress(StartError):
                guest.process = await KeptProcess.start(
                    guest.command, env=guest.environment, cwd=Path(os.sep), log=guest.log
                )

    async def end(self, name: str, number: int, grace: float) -> dict[str, Any]:
        """Signal a guest, kill it where it still runs after *grace* seconds, and let it rest. Raises ValueError."""
        guest = self._guests.get(name)
        if guest is None:
            raise ValueError(f"there is no guest {name!r}: the guests are {', '.join(self._guests) or 'none yet'}")
        await self._dismiss_keeper(guest)
        if not guest.process.exit:
            await guest.process.end(number, grace)
        return guest.show()

    async def _dismiss_keeper(self, guest: Guest) -> None:
        keeper, guest.keeper = guest.keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _forget(self, name: str) -> None:
        known = self._guests.pop(name, None)
        if known is not None:
            await self._dismiss_keeper(known)

    async def stop(self, number: int, grace: float) -> None:
        """End all of them."""
        await asyncio.gather(*(self.end(name, number, grace) for name in self._guests))
