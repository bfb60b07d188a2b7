"""Traces made up from a seed, like the measured ones: availability, heavy tails, zones of a region that fail together.

A zone's spare capacity is a number that wanders; spot capacity is there while it is above a level, which the zone's
availability sets. It is the sum of waves with time scales from minutes to weeks (that makes the tails heavy: short
and long windows from one process); part of each wave is the whole region's, or everyone's (so zones fail together).
:data:`WAVES` is fitted to the public traces of skypilot-org/spot-traces; statistics.py measures both alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from lorafinetune.simulate.traces import MAX_GAPS, MAX_ZONES, Traces, from_samples


@dataclass(frozen=True, slots=True)
class Wave:
    """One part of the spare capacity: a first-order autoregressive process."""

    hours: float
    """How long it remembers."""
    weight: float
    """Its part of the whole variance."""
    shared: float
    """The part of it, 0 to 1, that all zones of a region have in common."""
    everywhere: float
    """The part of it that all zones have in common; with *shared* at most 1."""


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone to make up: its long-run availability, more than 0 and less than 1."""

    name: str
    region: str
    availability: float


WAVES: Final = (
    Wave(hours=0.35, weight=0.02, shared=0.8, everywhere=0.2),
    Wave(hours=3.1, weight=0.48, shared=0.6, everywhere=0.2),
    Wave(hours=51.0, weight=0.44, shared=0.42, everywhere=0.2),
    Wave(hours=126.0, weight=0.06, shared=0.8, everywhere=0.0),
)
ZONES: Final = (
    Zone("east-1a", "east-1", 0.17),
    Zone("east-1b", "east-1", 0.47),
    Zone("east-1c", "east-1", 0.45),
    Zone("east-1d", "east-1", 0.59),
    Zone("east-2a", "east-2", 0.76),
    Zone("east-2b", "east-2", 0.68),
    Zone("west-2a", "west-2", 0.88),
    Zone("west-2b", "west-2", 0.90),
    Zone("west-2c", "west-2", 0.89),
)
"""Nine zones of three regions, as available as the measured ones."""
GAP_SECONDS: Final = 195.0
HOLD_SECONDS: Final = 600.0
"""For how long an answer holds: the public traces were asked every ten minutes."""


def generate(
    seed: int,
    days: float = 45.0,
    zones: Sequence[Zone] = ZONES,
    *,
    gap_seconds: float = GAP_SECONDS,
    hold_seconds: float = HOLD_SECONDS,
) -> Traces:
    """Return *days* of traces of *zones*: the same for the same arguments, anywhere."""
    gaps = round(days * 86_400 / gap_seconds) if gap_seconds > 0 else 0
    if not 0 < gaps <= MAX_GAPS or not 0 < len(zones) <= MAX_ZONES or hold_seconds < gap_seconds:
        raise ValueError(f"{gaps} gaps of {len(zones)} zones: ask for 1 to {MAX_GAPS} gaps, and 1 to {MAX_ZONES} zones")
    if len({zone.name for zone in zones}) != len(zones) or not all(0 < zone.availability < 1 for zone in zones):
        raise ValueError("zones: each needs a name of its own, and an availability between 0 and 1")
    ticks = int((gaps - 1) * gap_seconds // hold_seconds) + 1
    tick_hours = hold_seconds / 3600
    everyone = [list(_walk(f"{seed}/{wave.hours}", wave, tick_hours, ticks)) for wave in WAVES]
    regions = {
        region: [list(_walk(f"{seed}/{region}/{wave.hours}", wave, tick_hours, ticks)) for wave in WAVES]
        for region in dict.fromkeys(zone.region for zone in zones)
    }
    samples = {}
    for zone in zones:
        level = -NormalDist().inv_cdf(zone.availability)
        spare = [0.0] * ticks
        for wave, regional, general in zip(WAVES, regions[zone.region], everyone, strict=True):
            own = _walk(f"{seed}/{zone.region}/{zone.name}/{wave.hours}", wave, tick_hours, ticks)
            alone = math.sqrt(wave.weight * max(0.0, 1 - wave.shared - wave.everywhere))
            shared, everywhere = math.sqrt(wave.weight * wave.shared), math.sqrt(wave.weight * wave.everywhere)
            parts = zip(spare, own, regional, general, strict=True)
            spare = [sum_ + alone * a + shared * b + everywhere * c for sum_, a, b, c in parts]
        samples[zone.name] = tuple(spare[int(gap * gap_seconds // hold_seconds)] > level for gap in range(gaps))
    made = from_samples(samples, gap_seconds)
    return Traces(made.zones, gap_seconds, source=f"made by lorafinetune.simulate.generator, seed {seed}")


def _walk(seed: str, wave: Wave, tick_hours: float, ticks: int) -> Iterator[float]:
    """Yield values of mean 0 and variance 1 that forget within the wave's hours."""
    chance = random.Random(seed)
    keep = math.exp(-tick_hours / wave.hours)
    fresh = math.sqrt(1 - keep * keep)
    value = chance.gauss(0.0, 1.0)
    for _ in range(ticks):
        yield value
        value = keep * value + fresh * chance.gauss(0.0, 1.0)
