"""The made traces are like the measured ones, in the numbers that a run feels."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import pytest

from lorafinetune.simulate.generator import Zone, generate
from lorafinetune.simulate.statistics import Statistics, measure

# skypilot-org/spot-traces, availability/1-node/aws-02-15-2023: 1x V100, nine AWS zones, 45.5 days, gaps of 195 s.
# Measured with lorafinetune.simulate.statistics; (measured, how far the mean of five seeds may be off).
MEASURED = {
    "lowest": (0.17, 0.12),
    "highest": (0.90, 0.08),
    "anywhere": (0.992, 0.02),
    "windows_per_zone_day": (4.63, 1.2),
    "up_median": (0.54, 0.25),
    "up_mean": (3.34, 1.0),
    "up_short": (0.46, 0.08),
    "up_under_hour": (0.63, 0.08),
    "down_median": (0.49, 0.25),
    "down_mean": (1.85, 0.6),
    "longest_down": (80.2, 60.0),
    "survives_15m": (0.93, 0.03),
    "survives_60m": (0.82, 0.05),
    "survives_240m": (0.61, 0.08),
    "alike_within": (0.43, 0.12),
    "alike_across": (0.14, 0.12),
}
SEEDS = range(100, 105)


@cache
def made() -> list[Statistics]:
    return [measure(generate(seed)) for seed in SEEDS]


def test_every_number_is_held() -> None:
    assert {field.name for field in fields(Statistics)} == set(MEASURED)


@pytest.mark.parametrize("name", MEASURED)
def test_made_traces_are_like_the_measured(name: str) -> None:
    values = [getattr(one, name) for one in made()]
    measured, margin = MEASURED[name]
    assert sum(values) / len(values) == pytest.approx(measured, abs=margin)


def test_a_seed_is_a_trace() -> None:
    assert generate(7, days=2) == generate(7, days=2)
    assert generate(7, days=2).zones != generate(8, days=2).zones
    longer = generate(7, days=4)
    assert longer.zones["west-2a"].samples()[:800] == generate(7, days=2).zones["west-2a"].samples()[:800]


def test_a_zone_is_the_same_beside_others() -> None:
    one = Zone("here-1a", "here-1", 0.6)
    other = Zone("there-1a", "there-1", 0.3)
    assert generate(3, 2, [one]).zones["here-1a"] == generate(3, 2, [other, one]).zones["here-1a"]


@pytest.mark.parametrize("gap", [60.0, 195.0, 600.0])
def test_traces_are_as_long_as_asked(gap: float) -> None:
    traces = generate(1, days=3, gap_seconds=gap)
    assert traces.seconds == pytest.approx(3 * 86_400, abs=gap)
    assert len(traces.zones) == 9


@pytest.mark.parametrize(
    ("days", "zones"),
    [(0, [Zone("a", "r", 0.5)]), (1e9, [Zone("a", "r", 0.5)]), (1, []), (1, [Zone("a", "r", 1.0)])],
)
def test_what_cannot_be_made_is_refused(days: float, zones: list[Zone]) -> None:
    with pytest.raises(ValueError, match="zones"):
        generate(1, days, zones)
