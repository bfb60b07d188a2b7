"""The steps as TensorBoard reads them: its own package's event files, made of the same lines as ``metrics.jsonl``.

Event files hold one attempt's steps each, or a part of them. Each attempt's first event tells TensorBoard to forget
what it has read of that step and later ones, so that steps which were done twice stand there once.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from typing import Any, Final

from lorafinetune_trainer.failure import invalid

TAGS: Final = {
    "loss": "train/loss",
    "learningRate": "train/learning_rate",
    "gradientNorm": "train/gradient_norm",
    "secondsPerStep": "speed/seconds_per_step",
    "imagesPerSecond": "speed/images_per_second",
    "mfu": "speed/mfu",
    "memoryBytes": "memory/bytes",
}
"""What each member of a line is called in TensorBoard."""


def require(wanted: bool) -> None:
    """Raise Failure (INVALID) where event files are *wanted* and the package is not installed."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise invalid(
            "TensorBoardMissing",
            "metrics.tensorBoard needs the package tensorboard, which this trainer lacks: install it with the extra "
            "of that name (lorafinetune[trainer,tensorboard]), or set metrics.tensorBoard: false",
        )


def begin(line: Mapping[str, Any], *, restart: bool) -> bytes:
    """Return the records that a file begins with; *line* is its first one.

    With *restart*, what was read before of its step and later ones is void.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    events = [Event(wall_time=line["time"], file_version="brain.Event:2")]
    if restart:
        start = SessionLog(status=SessionLog.START)
        events.append(Event(wall_time=line["time"], step=line["step"], session_log=start))
    return _records(events)


def record(line: Mapping[str, Any]) -> bytes:
    """Return the record of one step."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=tag, simple_value=line[name]) for name, tag in TAGS.items() if line.get(name) is not None
    ]
    return _records([Event(wall_time=line["time"], step=line["step"], summary=Summary(value=values))])


def _records(events: list[Any]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    return file.getvalue()
