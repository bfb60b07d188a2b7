"""What traces are like, in the few numbers that a run feels: used to fit the generator, and to look at one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

from lorafinetune.simulate.traces import Trace, Traces


@dataclass(frozen=True, slots=True)
class Statistics:
    """Times in hours, parts of one."""

    lowest: float
    """Availability of the worst zone."""
    highest: float
    anywhere: float
    """The part of the time in which at least one zone was available."""
    windows_per_zone_day: float
    """Windows with capacity."""
    up_median: float
    up_mean: float
    up_short: float
    """Part of the windows shorter than 30 min."""
    up_under_hour: float
    down_median: float
    down_mean: float
    longest_down: float
    survives_15m: float
    """Chance that 15 min from a random available moment are not interrupted."""
    survives_60m: float
    survives_240m: float
    alike_within: float
    """Mean correlation of two zones of a region."""
    alike_across: float


def region_of(zone: str) -> str:
    """Return the region in a zone's name: all but its last letter."""
    return zone[:-1]


def measure(traces: Traces) -> Statistics:
    """Return the statistics of *traces*."""
    hours = traces.gap_seconds / 3600
    zones = traces.zones
    ups = sorted(run * hours for trace in zones.values() for run in trace.runs[0::2] if run)
    downs = sorted(run * hours for trace in zones.values() for run in trace.runs[1::2])
    seen = {name: trace.samples() for name, trace in zones.items()}
    within: list[float] = []
    across: list[float] = []
    for one, other in combinations(zones, 2):
        (within if region_of(one) == region_of(other) else across).append(_alike(seen[one], seen[other]))
    shares = [trace.availability for trace in zones.values()]
    days = traces.seconds / 86_400 * len(zones)
    return Statistics(
        lowest=min(shares),
        highest=max(shares),
        anywhere=_mean([any(gap) for gap in zip(*seen.values(), strict=True)]),
        windows_per_zone_day=len(ups) / days,
        up_median=_median(ups),
        up_mean=_mean(ups),
        up_short=_mean([up < 0.5 for up in ups]),
        up_under_hour=_mean([up < 1.0 for up in ups]),
        down_median=_median(downs),
        down_mean=_mean(downs),
        longest_down=max(downs, default=0.0),
        survives_15m=_survives(zones.values(), 0.25 / hours),
        survives_60m=_survives(zones.values(), 1.0 / hours),
        survives_240m=_survives(zones.values(), 4.0 / hours),
        alike_within=_mean(within),
        alike_across=_mean(across),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _median(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) // 2] if ordered else 0.0


def _survives(traces: Iterable[Trace], gaps: float) -> float:
    runs = [run for trace in traces for run in trace.runs[0::2]]
    total = sum(runs)
    return sum(max(0.0, run - gaps) for run in runs) / total if total else 0.0


def _alike(one: Sequence[bool], other: Sequence[bool]) -> float:
    a, b = _mean(one), _mean(other)
    both = _mean([x and y for x, y in zip(one, other, strict=True)])
    spread = a * (1 - a) * b * (1 - b)
    return (both - a * b) / sqrt(spread) if spread else 0.0
