"""A handle on a kept program: start it under a keeper, signal it, wait for its end.

Used by the supervisor for the control plane and the nodes, and by a node for its containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEEPER = Path(__file__).with_name("keeper.py")


class StartError(RuntimeError):
    """The program could not be executed; the message names it and the reason."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended. `code` or `signal` is set; neither where its keeper itself was killed."""

    code: int | None
    signal: int | None
    time: float
    """Unix seconds."""


class KeptProcess:
    """One running program. Make it with `start`."""

    def __init__(self, keeper: asyncio.subprocess.Process, started: dict[str, Any]) -> None:
        self.keeper = keeper
        self.pid: int = started["pid"]
        self.started: float = started["time"]
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._follow: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        cri_log: Path | None = None,
    ) -> KeptProcess:
        """Start `command`; its output goes to `log` as it is, or to `cri_log` as a container runtime writes it.

        Raises StartError where it cannot be executed.
        """
        status_read, status_write = os.pipe()
        options = ["--status-fd", str(status_write)] + (["--cri-log", str(cri_log)] if cri_log else [])
        if env is not None and "LC_CTYPE" not in env:
            options += ["--unset", "LC_CTYPE"]  # the keeper's own Python may set it
        output = log.open("ab") if log else None
        try:
            keeper = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", KEEPER, *options, "--", *map(str, command),
                stdin=asyncio.subprocess.PIPE, stdout=output or asyncio.subprocess.DEVNULL,
                stderr=output or asyncio.subprocess.DEVNULL, pass_fds=(status_write,), start_new_session=True,
                env=dict(env) if env is not None else None, cwd=cwd,
            )  # fmt: skip
        finally:
            os.close(status_write)
            if output:
                output.close()
        reader = asyncio.StreamReader()
        status = os.fdopen(status_read, "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), status)
        first = json.loads(await reader.readline() or b'{"failed": {"message": "the keeper ended at once"}}')
        if "failed" in first:
            await keeper.wait()
            raise StartError(first["failed"]["message"])
        process = cls(keeper, first["started"])
        process._follow = asyncio.create_task(process._read_exit(reader))
        return process

    async def _read_exit(self, reader: asyncio.StreamReader) -> None:
        """Wait for the keeper's report; a keeper that ends without one was killed."""
        line = await reader.readline()
        await self.keeper.wait()
        found = json.loads(line)["exited"] if line else {"code": None, "signal": None, "time": time.time()}
        if not self._exit.done():
            self._exit.set_result(Exit(**found))

    @property
    def exit(self) -> Exit | None:
        """How it ended, or None while it runs."""
        return self._exit.result() if self._exit.done() else None

    def _command(self, line: str) -> None:
        if self.keeper.stdin is not None and self.exit is None:
            with contextlib.suppress(OSError, RuntimeError):
                self.keeper.stdin.write(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send a signal to the main process only."""
        self._command(f"signal {int(number)}")

    def kill(self) -> None:
        """SIGKILL to the main process and to everything that came from it."""
        self._command("kill")

    async def wait(self, seconds: float | None = None) -> Exit:
        """Wait for the end. Raises TimeoutError after `seconds`."""
        return await asyncio.wait_for(asyncio.shield(self._exit), seconds)

    async def end(self, number: int, grace: float) -> Exit:
        """Signal it, and kill it where it still runs after `grace` seconds."""
        self.signal(number)
        try:
            return await self.wait(grace)
        except TimeoutError:
            self.kill()
            return await self.wait(10)
