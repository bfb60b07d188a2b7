"""Instants and durations as people and manifests write them; instants are Unix seconds everywhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from lorafinetune.api.instants import instant

__all__ = ["LAST", "duration", "exact", "instant", "stamp"]

LAST: Final = 253_402_300_799.0
"""The last second of the year 9999: what comes later has no name."""


def stamp(instant: float) -> str:
    """Return *instant* as Kubernetes writes times: RFC 3339, UTC, whole seconds, from 1970 to 9999."""
    return _stamped(int(min(max(0.0, instant), LAST)))


@lru_cache(maxsize=4096)
def _stamped(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """Return *seconds* in the two largest units that people need: 45s, 5m, 2h10m, 3d4h."""
    whole = round(min(max(0.0, seconds), LAST))
    if whole < 60:
        return f"{whole}s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def exact(seconds: float) -> str:
    """Return *seconds* as :func:`duration` does, but below ten minutes with its seconds: 1m42s."""
    minutes, rest = divmod(round(min(max(0.0, seconds), LAST)), 60)
    return f"{minutes}m{rest}s" if 1 <= minutes < 10 and rest else duration(seconds)
