"""Points in time as users, Kubernetes and the trainer write them, RFC 3339. The one place that reads them."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from lorafinetune.api.words import worded

_DAY: Final = (
    "(((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])))"
)
_LEAP_DAY: Final = "20([02468][048]|[13579][26])-02-29"
_CLOCK: Final = "([01][0-9]|2[0-3]):[0-5][0-9]"
INSTANT: Final = (
    rf"^((197|20[0-9])[0-9]-{_DAY}|{_LEAP_DAY})[Tt]{_CLOCK}:[0-5][0-9]([.][0-9]{{1,9}})?([Zz]|[+-]{_CLOCK})$"
)
"""Of this century (or of the clock's first years, in which simulations play), days that exist, with a zone.

One expression, for a rule that reads a time fails where there is none to read, and the API server's own format takes
hour 99 of a zone."""

Instant = Annotated[
    str,
    Field(
        max_length=35,
        pattern=INSTANT,
        json_schema_extra=worded(
            "must be a time of this century with its zone, such as 2026-12-24T18:00:00Z or 2026-12-24T19:00:00+01:00"
        ),
    ),
]
"""A point in time that a user writes."""


@lru_cache(maxsize=65_536)  # a run's times are read again in each of its passes
def instant(text: str) -> float:
    """Return the Unix seconds of an RFC 3339 time, in small letters too; a leap second is the second before it.

    Raises ValueError for what is none: the API server's ``date-time`` takes year 0, hour 99 of a zone, and more.
    """
    read = datetime.fromisoformat(text.upper().replace(":60", ":59"))
    if read.tzinfo is None:
        raise ValueError("has no zone: write 2026-12-24T18:00:00Z")
    return read.timestamp()


def _checked(text: str) -> str:
    instant(text)
    return text


Timestamp = Annotated[str, AfterValidator(_checked), Field(json_schema_extra={"format": "date-time"})]
"""A point in time that we have written; who reads one that anybody forged learns it where the whole is read."""
