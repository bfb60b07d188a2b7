"""Files in blocks of at most 64 MiB: what is hashed, fetched and kept at a time, several of them at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from lorafinetune.contract.layout import MAX_PART_BYTES

PARALLEL: Final = 4
_PIECE: Final = 1024 * 1024


class Block(NamedTuple):
    """A range of bytes of a file."""

    name: str
    """The file, relative to the model's folder."""
    first: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.first


def cut(name: str, first: int, end: int) -> list[Block]:
    """Return the blocks of the bytes *first* to *end* of a file; nothing of it gives one empty block."""
    return [Block(name, one, min(one + MAX_PART_BYTES, end)) for one in range(first, end, MAX_PART_BYTES)] or [
        Block(name, first, end)
    ]


def hashes(folder: Path, wanted: Iterable[Block]) -> dict[Block, str]:
    """Return the SHA-256 of each block of the files below *folder*."""
    blocks = list(wanted)
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="hash") as pool:
        return dict(zip(blocks, pool.map(lambda block: _sha256(folder, block), blocks), strict=True))


def read(folder: Path, block: Block) -> bytes:
    """Return the bytes of a block."""
    with (folder / block.name).open("rb") as file:
        return os.pread(file.fileno(), block.size, block.first)


def write(folder: Path, block: Block, body: bytes) -> None:
    """Put *body* at its place in a file that is there already."""
    with (folder / block.name).open("r+b", buffering=0) as file:
        view, place = memoryview(body), block.first
        while view:
            done = os.pwrite(file.fileno(), view, place)
            view, place = view[done:], place + done


def _sha256(folder: Path, block: Block) -> str:
    found, place = hashlib.sha256(), block.first
    with (folder / block.name).open("rb") as file:
        while place < block.end:
            piece = os.pread(file.fileno(), min(_PIECE, block.end - place), place)
            if not piece:
                raise OSError(f"{block.name} ends before byte {block.end}")
            found.update(piece)
            place += len(piece)
    return found.hexdigest()
