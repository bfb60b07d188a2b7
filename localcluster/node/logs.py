"""Reads container logs as a kubelet serves them: from the files that the keeper writes in the runtime's format."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

FOLLOW_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What of a log is wanted."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: float | None = None
    """Unix seconds."""


def render(line: bytes, options: LogOptions) -> bytes:
    """Return a line of the file as the reader sees it; empty where it is too old."""
    time, _, rest = line.partition(b" ")
    _, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    if options.since is not None:
        try:
            written = datetime.datetime.fromisoformat(time.decode().replace("Z", "+00:00")).timestamp()
        except ValueError:
            return b""
        if written < options.since:
            return b""
    shown = text if tag == b"P" else text + b"\n"
    return time + b" " + shown if options.timestamps else shown


def tail(path: Path, lines: int, limit: int) -> str:
    """Return the last lines of a log without times, at most `limit` bytes: what a termination message falls back to."""
    if not path.exists():
        return ""
    texts = [render(line, LogOptions()) for line in path.read_bytes().split(b"\n")[:-1][-lines:]]
    return b"".join(texts)[-limit:].decode(errors="replace")


async def read(path: Path, options: LogOptions, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield a container's output, the rotated part first; with `follow`, until the container has ended."""
    content, position = await asyncio.to_thread(_present, path)
    lines = content.split(b"\n")[:-1]  # not splitlines: a progress bar writes \r within its line
    if options.tail_lines is not None:
        lines = lines[len(lines) - options.tail_lines :] if options.tail_lines < len(lines) else lines
        lines = lines if options.tail_lines > 0 else []
    left = options.limit_bytes if options.limit_bytes is not None else -1
    for line in lines:
        shown = render(line, options)
        if left >= 0:
            shown, left = shown[:left], max(0, left - len(shown))
        if shown:
            yield shown
        if left == 0:
            return
    while options.follow:
        over = ended()
        content, position = await asyncio.to_thread(_since, path, position)
        for line in content.split(b"\n")[:-1]:
            yield render(line, options)
        if over:
            return
        await asyncio.sleep(FOLLOW_SECONDS)


def _present(path: Path) -> tuple[bytes, int]:
    """Return the whole lines that there are, the rotated part first, and where to read on."""
    rotated = path.with_name(path.name + ".1")
    old = rotated.read_bytes() if rotated.exists() else b""
    new, position = _since(path, 0)
    return old + new, position


def _since(path: Path, position: int) -> tuple[bytes, int]:
    """Return the whole lines after `position` (a line that is being written is read later), and where to read on."""
    if not path.exists():
        return b"", 0
    with path.open("rb") as file:
        if path.stat().st_size < position:
            position = 0  # rotated
        file.seek(position)
        data = file.read()
    whole = data.rfind(b"\n") + 1
    return data[:whole], position + whole
