"""Points in time as people write them: one parser, and what a deadline may be says the same as what can be read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest
from pydantic import ValidationError

from lorafinetune.api.amounts import amount
from lorafinetune.api.limits import LimitsSpec
from lorafinetune.engine.times import duration, exact, instant, stamp

ROWS: Final = [
    # name, text, its Unix seconds (None = no time), whether it may be a deadline
    ("as Kubernetes writes it", "2026-12-24T18:00:00Z", 1_798_135_200.0, True),
    ("in small letters", "2026-12-24t18:00:00z", 1_798_135_200.0, True),
    ("of another zone", "2026-12-24T19:00:00+01:00", 1_798_135_200.0, True),
    ("parts of a second", "2026-12-24T18:00:00.250000000Z", 1_798_135_200.25, True),
    ("a leap day", "2028-02-29T00:00:00Z", 1_835_395_200.0, True),
    ("a leap second, as some clouds write it", "2026-12-24T17:59:60Z", 1_798_135_199.0, False),
    ("a year without one", "2027-02-29T00:00:00Z", None, False),
    ("the 31st of a short month", "2026-11-31T00:00:00Z", None, False),
    ("no zone", "2026-12-24T18:00:00", None, False),
    ("a day", "2026-12-24", None, False),
    ("hour 99 of a zone", "2036-12-24T18:00:00+99:99", None, False),
    ("year 0", "0000-01-01T00:00:00Z", None, False),
    ("a letter for a point", "2036-12-24T18:00:00x5Z", None, False),
    ("words", "tomorrow", None, False),
    ("nothing", "", None, False),
    ("the last century", "1999-12-31T23:59:59Z", 946_684_799.0, False),
    ("the next one", "2100-01-01T00:00:00Z", 4_102_444_800.0, False),
]


@pytest.mark.parametrize(("text", "seconds", "deadline"), [one[1:] for one in ROWS], ids=[one[0] for one in ROWS])
def test_a_time(text: str, seconds: float | None, deadline: bool) -> None:
    if seconds is None:
        with pytest.raises(ValueError):
            instant(text)
    else:
        assert instant(text) == seconds
    if deadline:
        assert LimitsSpec(deadline=text).deadline == text
    else:
        with pytest.raises(ValidationError, match="deadline"):
            LimitsSpec(deadline=text)


def test_every_day_of_the_century_may_be_a_deadline_and_no_other() -> None:
    for year in (2000, 2023, 2024, 2096, 2099):
        for month in range(14):
            for day in range(33):
                text = f"{year}-{month:02}-{day:02}T00:00:00Z"
                try:
                    is_one = datetime(year, month, day, tzinfo=UTC) is not None
                except ValueError:
                    is_one = False
                try:
                    taken = LimitsSpec(deadline=text).deadline == text
                except ValidationError:
                    taken = False
                assert taken == is_one, text


def test_what_is_beyond_all_time_is_told_as_its_end() -> None:
    assert (stamp(-1e12), stamp(1e300), stamp(float("inf"))) == ("1970-01-01T00:00:00Z", *["9999-12-31T23:59:59Z"] * 2)
    assert duration(float("inf")) == exact(1e300) == "2932897d"


AMOUNTS: Final = [
    ("0", True),
    ("0.348", True),
    ("1e-06", True),
    ("abc", False),
    ("NaN", False),
    ("-1", False),
    ("1e15", False),
    ("", False),
]


@pytest.mark.parametrize(("text", "good"), AMOUNTS)
def test_an_amount(text: str, good: bool) -> None:
    if good:
        assert amount(text) >= 0
    else:
        with pytest.raises(ValueError, match="must be a decimal number from 0"):
            amount(text)
