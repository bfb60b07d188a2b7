"""The body of a put, handed to the connection in pieces, so that it can be counted and stopped while it is sent.

One piece after another, because a socket's time-out is the limit of one call that sends: 64 MiB in one call would fail
on every link that is slower than that. Pieces are not small either: each needs the interpreter for a moment, which
training wants too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

PIECE_BYTES: Final = 1024 * 1024


class Pieces:
    """A file-like view of *body*: what the S3 client reads, measures, and rewinds before it tries again."""

    def __init__(self, body: bytes | bytearray | memoryview, watch: Callable[[int], None] | None = None) -> None:
        """*watch* is called with the size of each piece before it is sent; what it raises ends the put."""
        self._body = memoryview(body).cast("B")
        self._watch = watch
        self._place = 0

    def __len__(self) -> int:
        return len(self._body)

    def read(self, size: int | None = None) -> bytes | memoryview:
        """Return the next piece, ``b""`` at the end. It is larger than the *size* that the connection proposes."""
        piece = self._body[self._place : self._place + PIECE_BYTES]
        if not piece:
            return b""
        if self._watch is not None:
            self._watch(len(piece))
        self._place += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to another place, as files do."""
        self._place = offset + (0, self._place, len(self._body))[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place
