"""Traces of spot availability: when each zone had capacity. What a simulation replays; docs/simulate.md has the format.

A trace that has ended begins again, so every instant from zero on has an answer.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from lorafinetune.api.gpupool import PRICE

MAX_BYTES: Final = 64 * 2**20
MAX_ZONES: Final = 1_000
MAX_RUNS: Final = 1_000_000
"""Run lengths of one zone."""
MAX_GAPS: Final = 10_000_000
"""Gaps of one zone: sixty years of samples every 195 s."""
MAX_GAP_SECONDS: Final = 86_400.0
MAX_ZONE_NAME: Final = 63
"""Characters of a label's value, which a zone's name becomes; and of a pool's name."""
ZONE: Final = re.compile(
    rf"(?=.{{1,{MAX_ZONE_NAME}}}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)


class TraceError(ValueError):
    """A trace file that cannot be used: the message names the file, the zone and the fix."""


@dataclass(frozen=True, slots=True)
class ZonePrices:
    """What an hour costs in a zone, in the currency of the file."""

    spot: Decimal
    on_demand: Decimal


@dataclass(frozen=True, slots=True)
class Trace:
    """One zone: alternating run lengths in gaps, the first of them available (and maybe 0)."""

    runs: tuple[int, ...]
    gap_seconds: float
    ends: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The gap at which each run ends."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(self.runs)))

    @property
    def seconds(self) -> float:
        """The length of the trace."""
        return self.ends[-1] * self.gap_seconds

    @property
    def availability(self) -> float:
        """The part of the time in which there was spot capacity, 0 to 1."""
        return sum(self.runs[0::2]) / self.ends[-1]

    def available(self, seconds: float) -> bool:
        """Return whether there was spot capacity *seconds* after the start."""
        return bisect_right(self.ends, self._gap(seconds)) % 2 == 0

    def next_change(self, seconds: float) -> float | None:
        """Return when the answer next differs, in seconds after the start; None where it never does."""
        run = bisect_right(self.ends, self._gap(seconds))
        here, length = run % 2, self.ends[-1]
        begun = seconds // self.seconds * length
        for offset in range(len(self.runs) + 2):
            lap, other = divmod(run + 1 + offset, len(self.runs))
            if other % 2 != here and self.runs[other]:
                start = self.ends[other] - self.runs[other]
                return float((begun + lap * length + start) * self.gap_seconds)
        return None

    def samples(self) -> tuple[bool, ...]:
        """Return whether there was capacity in each gap, one after the other."""
        return tuple(index % 2 == 0 for index, length in enumerate(self.runs) for _ in range(length))

    def _gap(self, seconds: float) -> int:
        if seconds < 0:
            raise ValueError(f"a trace has no instant {seconds:g} s: it begins at 0")
        return int(seconds % self.seconds // self.gap_seconds)


@dataclass(frozen=True, slots=True)
class Traces:
    """Zones side by side, all of one length."""

    zones: Mapping[str, Trace]
    gap_seconds: float
    start: str | None = None
    source: str | None = None
    instance: str | None = None
    prices: Mapping[str, ZonePrices] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The length of the traces."""
        return next(iter(self.zones.values())).seconds

    def available(self, zone: str, seconds: float) -> bool:
        """Return whether *zone* had spot capacity *seconds* after the start."""
        return self.zones[zone].available(seconds)

    def next_change(self, zone: str, seconds: float) -> float | None:
        """Return when that of *zone* next differs, in seconds after the start; None where it never does."""
        return self.zones[zone].next_change(seconds)


def read(path: Path) -> Traces:
    """Read the trace file at *path*. Raises TraceError, which says what to mend."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TraceError(f"{path}: larger than {MAX_BYTES >> 20} MiB: cut it into several files")
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}: name a trace file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: is no JSON ({error}): see docs/simulate.md for the format") from error
    return parse(body, str(path))


def parse(body: Any, name: str) -> Traces:
    """Return the traces in *body*, the JSON of the file called *name*. Raises TraceError, which says what to mend."""
    if not isinstance(body, dict):
        raise TraceError(f"{name}: must be an object with zones and gap_seconds, see docs/simulate.md")
    gap = body.get("gap_seconds")
    if isinstance(gap, bool) or not isinstance(gap, (int, float)) or not 0 < gap <= MAX_GAP_SECONDS:
        raise TraceError(f"{name}: gap_seconds is {gap!r}: write the seconds of one gap, more than 0, at most 86400")
    zones = body.get("zones")
    if not isinstance(zones, dict) or not zones:
        raise TraceError(f"{name}: zones is missing or empty: write an object of zone name to run lengths")
    if len(zones) > MAX_ZONES:
        raise TraceError(f"{name}: {len(zones)} zones are more than {MAX_ZONES}: cut it into several files")
    for zone in zones:
        if ZONE.fullmatch(zone) is None:
            raise TraceError(
                f"{name}: zone {zone[:80]!r}: name it as a pool can be named: at most {MAX_ZONE_NAME} lower-case "
                "letters, digits, - and ., with a letter or digit at both ends"
            )
    traces = {zone: Trace(_runs(runs, f"{name}: zone {zone!r}"), float(gap)) for zone, runs in zones.items()}
    shortest = min(traces, key=lambda zone: traces[zone].ends[-1])
    for zone, trace in traces.items():
        if trace.ends[-1] != traces[shortest].ends[-1]:
            raise TraceError(
                f"{name}: zone {zone!r} is {trace.ends[-1]} gaps long, zone {shortest!r} {traces[shortest].ends[-1]}: "
                f"cut all zones to the same length"
            )
    words: dict[str, str | None] = {}
    for member in ("start", "source", "instance"):
        words[member] = body.get(member)
        if words[member] is not None and not isinstance(words[member], str):
            raise TraceError(f"{name}: {member} is {words[member]!r}: write a string, or leave it out")
    return Traces(traces, float(gap), **words, prices=_prices(body.get("prices"), traces, name))


def body_of(traces: Traces) -> dict[str, Any]:
    """Return the JSON of *traces*, as :func:`parse` takes it."""
    whole = traces.gap_seconds == int(traces.gap_seconds)
    body: dict[str, Any] = {"gap_seconds": int(traces.gap_seconds) if whole else traces.gap_seconds}
    for member in ("start", "source", "instance"):
        if (word := getattr(traces, member)) is not None:
            body[member] = word
    body["zones"] = {zone: list(trace.runs) for zone, trace in traces.zones.items()}
    if traces.prices:
        body["prices"] = {
            zone: {"spot": str(prices.spot), "onDemand": str(prices.on_demand)}
            for zone, prices in traces.prices.items()
        }
    return body


def write(traces: Traces, path: Path) -> None:
    """Write *traces* into the file at *path*."""
    path.write_text(json.dumps(body_of(traces), separators=(",", ":")) + "\n", encoding="utf-8")


def from_samples(samples: Mapping[str, tuple[bool, ...]], gap_seconds: float) -> Traces:
    """Return traces of what was seen in each gap, zone by zone."""
    return Traces({zone: Trace(_encoded(seen), gap_seconds) for zone, seen in samples.items()}, gap_seconds)


def _encoded(seen: tuple[bool, ...]) -> tuple[int, ...]:
    runs, last = [0], True
    for available in seen:
        if available is not last:
            runs.append(0)
            last = available
        runs[-1] += 1
    return tuple(runs)


def _runs(runs: Any, where: str) -> tuple[int, ...]:
    if not isinstance(runs, list) or not runs:
        raise TraceError(f"{where}: write a list of run lengths in gaps, the first of them available (0 if it was not)")
    if len(runs) > MAX_RUNS:
        raise TraceError(f"{where}: {len(runs)} run lengths are more than {MAX_RUNS}: cut the file into shorter ones")
    for index, length in enumerate(runs):
        if isinstance(length, bool) or not isinstance(length, int) or length < (1 if index else 0):
            raise TraceError(
                f"{where}: run length {index + 1} is {length!r}: write whole gaps, 1 or more (only the first may be 0)"
            )
    if not 0 < sum(runs) <= MAX_GAPS:
        raise TraceError(f"{where}: {sum(runs)} gaps: write at least one gap, and at most {MAX_GAPS}")
    return tuple(runs)


def _prices(given: Any, zones: Mapping[str, Trace], name: str) -> dict[str, ZonePrices]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TraceError(f"{name}: prices must be an object of zone name to spot and onDemand, or be left out")
    prices = {}
    for zone, pair in given.items():
        if zone not in zones:
            raise TraceError(f"{name}: prices name zone {zone!r}, which zones does not hold: add it there, or drop it")
        if not isinstance(pair, dict):
            raise TraceError(f'{name}: zone {zone!r}: write {{"spot": "0.9", "onDemand": "3.06"}} as its prices')
        prices[zone] = ZonePrices(*(_price(pair, member, f"{name}: zone {zone!r}") for member in ("spot", "onDemand")))
    return prices


def _price(pair: Mapping[str, Any], member: str, where: str) -> Decimal:
    text = pair.get(member)
    price = Decimal(text) if isinstance(text, str) and re.fullmatch(PRICE, text) else None
    if price is None or price <= 0:
        raise TraceError(
            f'{where}: prices.{member} is {text!r}: write a price per hour as a string, such as "0.9", with 6 digits '
            "after the point at most"
        )
    return price
