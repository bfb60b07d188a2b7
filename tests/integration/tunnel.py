"""A wire to the API server that tests can cut, hold silent and heal: bytes pass through as they are, TLS included."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import yaml


class Tunnel:
    """Forwards a loopback port to the API server of a kubeconfig."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self.config = yaml.safe_load(kubeconfig.read_text())
        self.target = self.config["clusters"][0]["cluster"]["server"].removeprefix("https://").split(":")
        self.kubeconfig = folder / "tunnel.kubeconfig"
        self.cut_off = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.ends: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Tunnel:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
        self.kubeconfig.write_text(yaml.safe_dump(self.config))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.server.wait_closed()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self.cut_off = True
        for end in self.ends:
            end.transport.abort()

    def heal(self) -> None:
        """Let everything through again."""
        self.cut_off = False
        self.flowing.set()

    def hush(self) -> None:
        """Let no byte through and close nothing: a half-open connection."""
        self.flowing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.ends.add(writer)
        far: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError):
            try:
                if not self.cut_off:
                    back, far = await asyncio.open_connection(*self.target)
                    self.ends.add(far)
                    async with asyncio.TaskGroup() as both:
                        both.create_task(self._pump(reader, far))
                        both.create_task(self._pump(back, writer))
            except* (OSError, asyncio.CancelledError):
                pass
            finally:
                for end in (writer, far):
                    if end is not None:
                        self.ends.discard(end)
                        end.transport.abort()
                self.tasks.discard(task)

    async def _pump(self, source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
        while piece := await source.read(65536):
            await self.flowing.wait()
            drain.write(piece)
            await drain.drain()
        drain.transport.abort()
