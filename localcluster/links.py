"""Cuttable network links: loopback ports that forward to another, and can fall silent as a broken network does.

Each node reaches the API server through a link of its own, and is reached through another, so that `cut` is a true
partition: connections stay open, nothing passes, nobody is told. Whatever was under way passes when the link heals.
"""

from __future__ import annotations

import asyncio
import contextlib

CHUNK = 256 * 1024
CONNECT_SECONDS = 5.0


class Link:
    """Forwards connections of `port` on 127.0.0.1 to `target` (host, port) while it is whole."""

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self.port = port
        self.target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Link:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    @property
    def is_cut(self) -> bool:
        """Whether nothing passes now."""
        return not self._whole.is_set()

    def cut(self) -> None:
        """Let nothing pass any more, in either direction; connections stay open."""
        self._whole.clear()

    def heal(self) -> None:
        """Let everything pass again, what was held back first."""
        self._whole.set()

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._server:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._whole.wait()
        try:
            there = asyncio.open_connection(*self.target)
            far_reader, far_writer = await asyncio.wait_for(there, CONNECT_SECONDS)
        except (OSError, TimeoutError):
            writer.transport.abort()  # as a closed port answers: with a reset
            return
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass
        finally:
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        await self._whole.wait()
        if writer.can_write_eof():
            with contextlib.suppress(OSError):
                writer.write_eof()
