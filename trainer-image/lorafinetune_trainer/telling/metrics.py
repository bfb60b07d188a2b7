"""One JSON line for every step, in the bucket before the checkpoint that holds it counts, and in the artifact at last.

An attempt's lines lie in parts of at most ``PART_LINES``; the last part is put anew, longer, with each checkpoint. What
is put never exceeds a part and what waits never a few of them, however long the run and however often it saves. Steps
that were done again after a preemption stand in the parts of both attempts: the later one's count.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from lorafinetune.contract import canonical, layout
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.telling import tensorboard

NAME: Final = "metrics.jsonl"
"""Of all lines, in the artifact."""
EVENTS: Final = "tensorboard/events.out.tfevents."
"""What the names of TensorBoard's files begin with, below the metrics' and the artifact's folder."""
PART_LINES: Final = 4096
MAX_WAITING: Final = 32
"""Parts that may wait for the bucket; the oldest are given up beyond it, and that is told."""
MAX_PART_BYTES: Final = 8 * 1024 * 1024
MAX_LINES: Final = 100_000
"""Lines in the artifact: of a longer run every second, third ... step, and the last."""
FOLD_FROM: Final = 64
"""Parts of earlier attempts from which on they are put together: each preemption leaves one."""
LINE_SECONDS: Final = 1.0
"""How long a save waits for the line of its step."""
_PART: Final = re.compile(r"^(\d{6})-(all-)?(\d{6})\.jsonl$")

Line = dict[str, Any]


class Tail(NamedTuple):
    """A part that grows: its name, and the bytes of its lines and of TensorBoard's records."""

    name: str
    lines: bytearray
    records: bytearray


def line(step: int, attempt: int, **values: float | None) -> Line:
    """Return the line of *step*; values that are absent or not finite are left out."""
    found: Line = {"step": step, "attempt": attempt, "time": round(time.time(), 3)}
    found |= {name: one for name, one in values.items() if one is not None and math.isfinite(one)}
    return found


class Metrics:
    """The lines of one attempt. One thread adds, any thread puts."""

    def __init__(
        self,
        bucket: Bucket,
        urgent: Bucket,
        *,
        attempt: int,
        step: int,
        tensor_board: bool,
        note: Callable[[str], None],
    ) -> None:
        """*bucket* and *urgent* stand on the run's prefix; the latter gives up early enough for the notice.

        *step* is where the attempt begins. With *tensor_board* there are event files beside the lines.
        """
        self._bucket = bucket
        self._urgent = urgent
        self._attempt = attempt
        self._tensor_board = tensor_board
        self._note = note
        self._step = step
        self._change = threading.Condition()
        self._parts: list[Tail] = []
        self._count = 0
        self._dirty = False

    def add(self, one: Line) -> None:
        """Keep a line until the next :meth:`put`."""
        body = canonical.encode(one) + b"\n"
        number, place = divmod(self._count, PART_LINES)
        records = b""
        if self._tensor_board:
            records = b"" if place else tensorboard.begin(one, restart=not number)
            records += tensorboard.record(one)
        with self._change:
            if not place:
                self._parts.append(Tail(f"{self._attempt:06}-{number:06}", bytearray(), bytearray()))
            self._parts[-1].lines.extend(body)
            self._parts[-1].records.extend(records)
            self._count += 1
            self._dirty = True
            self._step = one["step"]
            self._change.notify_all()
            lost = self._parts[:-MAX_WAITING]
            del self._parts[:-MAX_WAITING]
        if lost:
            self._note(f"{PART_LINES} lines of {NAME} were given up: the bucket has taken none for too long")

    def put(self, step: int, deadline: float | None = None) -> None:
        """Put all lines up to that of *step* at least, before a checkpoint of it counts; raises StorageError.

        One thread at a time. *deadline* is a monotonic time: the urgent bucket is used where there is one.
        """
        with self._change:
            # The step counts before its line is there: SIGTERM may be heard in between.
            self._change.wait_for(lambda: self._step >= step, LINE_SECONDS)
            if not self._dirty:
                return
            waiting = [(one.name, bytes(one.lines), bytes(one.records)) for one in self._parts]
            self._dirty = False
        place = self._bucket if deadline is None else self._urgent
        try:
            for name, lines, records in waiting:
                place.put(f"{layout.METRICS}{name}.jsonl", lines)
                if records:
                    place.put(f"{layout.METRICS}{EVENTS}{name}", records)
        except errors.StorageError:
            with self._change:
                self._dirty = True
            raise
        durable = {name: len(lines) for name, lines, _ in waiting}
        with self._change:  # the last part grows on
            self._parts = [
                one for one in self._parts if durable.get(one.name) != len(one.lines) or one is self._parts[-1]
            ]

    def fold(self) -> None:
        """Put the parts of many earlier attempts together, where there are many; what fails is told."""
        try:
            fold(self._bucket, self._attempt, tensor_board=self._tensor_board)
        except errors.StorageError as error:
            self._note(f"the metrics of earlier attempts could not be put together: {error}")

    def published(self, total: int) -> tuple[list[Line], dict[str, bytes]]:
        """Return all lines of the run, of *total* steps, and what the artifact holds of them; what fails is told."""
        try:
            self.put(total)
            lines = read(self._bucket, total)
        except errors.StorageError as error:
            self._note(f"{NAME} could not be made: {error}")
            return [], {}
        return lines, files(lines, tensor_board=self._tensor_board)


def read(bucket: Bucket, total: int, *, before: int | None = None) -> list[Line]:
    """Return the run's lines by step, the latest attempt's where there are several; of attempts below *before*.

    Of a run of more than MAX_LINES steps, *total*, evenly chosen ones and the last.
    """
    every = max(1, math.ceil(total / MAX_LINES)) if before is None else 1
    found: dict[int, Line] = {}
    for name in _parts(bucket, before):
        for one in _decode(bucket.get(layout.METRICS + name, limit=MAX_PART_BYTES).body):
            if one["step"] % every == 0 or one["step"] == total:
                found[one["step"]] = one
    return [found[step] for step in sorted(found) if step <= total]


def files(lines: list[Line], *, tensor_board: bool) -> dict[str, bytes]:
    """Return what the artifact holds of all *lines*, by name."""
    if not lines:
        return {}
    found = {NAME: b"".join(canonical.encode(one) + b"\n" for one in lines)}
    if tensor_board:
        found[f"{EVENTS}run"] = _event_file(lines)
    return found


def losses(lines: list[Line]) -> list[tuple[int, float]]:
    """Return step and loss of the *lines* that have one."""
    return [(one["step"], float(one["loss"])) for one in lines if "loss" in one]


def fold(bucket: Bucket, attempt: int, *, tensor_board: bool) -> int:
    """Put the lines of many earlier attempts together, where there are many; return how many parts were deleted.

    What is put together is durable before what it is made of is deleted, and stands behind it in the order of names.
    """
    names = _parts(bucket, attempt)
    if len(names) < FOLD_FROM:
        return 0
    lines = read(bucket, 2**53, before=attempt)
    stem = f"{attempt - 1:06}"
    kept = set()
    for number in range(math.ceil(len(lines) / PART_LINES)):
        some = lines[number * PART_LINES : (number + 1) * PART_LINES]
        name = f"{stem}-all-{number:06}"  # behind all digits
        bucket.put(f"{layout.METRICS}{name}.jsonl", b"".join(canonical.encode(one) + b"\n" for one in some))
        if tensor_board:
            bucket.put(f"{layout.METRICS}{EVENTS}{name}", _event_file(some, restart=not number))
        kept.add(name)
    old = [name.removesuffix(".jsonl") for name in names if name.removesuffix(".jsonl") not in kept]
    bucket.delete(f"{layout.METRICS}{name}.jsonl" for name in old)
    bucket.delete(f"{layout.METRICS}{EVENTS}{name}" for name in old)
    return len(old)


def _event_file(lines: list[Line], *, restart: bool = True) -> bytes:
    return tensorboard.begin(lines[0], restart=restart) + b"".join(map(tensorboard.record, lines))


def _parts(bucket: Bucket, before: int | None) -> list[str]:
    """Return the names of the parts, the later attempts' later."""
    found = []
    for one in bucket.walk(layout.METRICS):
        match = _PART.match(one.key.removeprefix(layout.METRICS))
        if match and (before is None or int(match[1]) < before):
            found.append(match[0])
    return sorted(found)


def _decode(body: bytes) -> Iterable[Line]:
    for text in body.splitlines():
        try:
            one = json.loads(text)
        except ValueError:
            continue
        if isinstance(one, Mapping) and isinstance(one.get("step"), int) and isinstance(one.get("time"), float | int):
            yield dict(one)
