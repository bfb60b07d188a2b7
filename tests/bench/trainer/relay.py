"""A relay on loopback that counts the bytes which pass in each direction, and may let them up no faster than a link."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.integration.trainer.faults import Link

PIECE = 256 * 1024


@dataclass(slots=True)
class Counts:
    """Bytes so far, headers of HTTP among them."""

    endpoint: str
    up: int = 0
    down: int = 0


@contextlib.contextmanager
def relay(upstream: str, bytes_per_second: float = 0.0) -> Iterator[Counts]:
    """Run a relay in front of *upstream*; its connections are cut when the block ends.

    All together send up no more than *bytes_per_second* (0: as fast as it goes). What has passed is on its way to
    *upstream* at once, as on a real link.
    """
    link = Link()
    link.bytes_per_second = bytes_per_second
    where = urlsplit(upstream)
    listener = socket.create_server(("127.0.0.1", 0))
    counts = Counts(f"http://127.0.0.1:{listener.getsockname()[1]}")
    lock, opened = threading.Lock(), [listener]

    def carry(source: socket.socket, target: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                if up:
                    link.carry(len(piece))
                target.sendall(piece)
                with lock:
                    if up:
                        counts.up += len(piece)
                    else:
                        counts.down += len(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((where.hostname or "", where.port or 80))
                with lock:
                    opened.extend((client, server))
                for pair in ((client, server, True), (server, client, False)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield counts
    finally:
        with lock:
            for one in opened:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
