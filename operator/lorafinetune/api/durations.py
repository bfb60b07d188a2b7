"""Durations as users write them: 90s, 20m, 1h30m."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field

from lorafinetune.api.words import rule, worded

DURATION: Final = r"^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$"

Duration = Annotated[
    str,
    Field(
        min_length=2,
        max_length=18,
        pattern=DURATION,
        json_schema_extra=worded(
            "must be a duration in hours, minutes and seconds, such as 90s, 20m or 1h30m",
            rule("self.matches('[1-9]')", "must be longer than nothing, such as 90s, 20m or 1h30m"),
        ),
    ),
]


def seconds(duration: str) -> float:
    """Return the seconds of *duration*."""
    found = re.fullmatch(DURATION, duration)
    if found is None:
        raise ValueError(f"{duration!r} is no duration such as 90s, 20m or 1h30m")
    hours, minutes, rest = (int(part[:-1]) if part else 0 for part in found.groups())
    return float(3600 * hours + 60 * minutes + rest)
