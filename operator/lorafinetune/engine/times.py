"""Instants and durations as people and manifests write them; instants are Unix seconds everywhere else."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(instant: float) -> str:
    """Return *instant* as Kubernetes writes times: RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(int(instant), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(text: str) -> float:
    """Return the Unix seconds of an RFC 3339 time, with or without a fraction."""
    return datetime.fromisoformat(text).timestamp()


def duration(seconds: float) -> str:
    """Return *seconds* in the two largest units that people need: 45s, 5m, 2h10m, 3d4h."""
    whole = max(0, round(seconds))
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
