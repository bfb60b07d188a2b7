"""What the operator is held to: limits.yaml, and which of its limits a run of the bench breaks.

Ratios within one run, counts and memory decide the exit status; absolute times only tell, for they depend on what else
the machine does. Each limit stands with what was measured when it was set: mean, spread, how often, when, on what.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from tests.bench.table import Row, line, short

FILE = Path(__file__).with_name("limits.yaml")
Figures = Mapping[str, Mapping[str, float]]
"""Key of a row to its figures (p50, p99, ratio)."""


class Measured(BaseModel):
    """What was seen when the limit was set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: Annotated[float, Field(ge=0)]
    spread: Annotated[float, Field(ge=0)]
    """The largest less the smallest."""
    runs: Annotated[int, Field(ge=1)]
    date: str
    machine: str


class Limit(BaseModel):
    """One limit: the figure *figure* of the row *key* may not be more than *limit*."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    figure: Annotated[str, Field(pattern="^(p50|p99|ratio)$")]
    unit: str = ""
    limit: Annotated[float, Field(ge=0)]
    decides: bool
    """Whether breaking it ends the bench with status 1."""
    why: str
    """Whose wish it is, or what it keeps from happening."""
    measured: Measured | None = None
    """None: not measured yet."""
    margin: float | None = None
    """How many times the mean the limit is; None where the mean is nothing."""

    @property
    def name(self) -> str:
        """The limit in a few characters."""
        return f"{self.key}.{self.figure}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A limit beside what this run has measured; *value* None: this run did not measure it."""

    limit: Limit
    value: float | None

    @property
    def broken(self) -> bool:
        """Whether the value is above the limit."""
        return self.value is not None and self.value > self.limit.limit

    @property
    def fatal(self) -> bool:
        """Whether that ends the bench with status 1."""
        return self.broken and self.limit.decides

    def sentence(self) -> str:
        """Say what is broken."""
        unit = f" {self.limit.unit}" if self.limit.unit else ""
        value = short(self.value) if self.value is not None else "nothing"
        return (
            f"{self.limit.name} is {value}{unit}, above its limit of {short(self.limit.limit)}{unit}: {self.limit.why}"
        )

    def cells(self) -> tuple[str, ...]:
        """A row of the table of limits."""
        limit, seen = self.limit, self.limit.measured
        unit = f" {limit.unit}" if limit.unit else ""
        usual = f"{short(seen.mean)}{unit} ± {short(seen.spread)} ({seen.date})" if seen else "-"
        kept = "not measured" if self.value is None else "**BROKEN**" if self.broken else "kept"
        return (
            limit.name,
            "-" if self.value is None else f"{short(self.value)}{unit}",
            f"<= {short(limit.limit)}{unit}",
            usual,
            "decides" if limit.decides else "tells",
            kept,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """All of them."""

    each: tuple[Limit, ...]

    @classmethod
    def read(cls, path: Path = FILE) -> Self:
        """Read the file. Raises pydantic.ValidationError, ValueError if one stands there twice."""
        each = tuple(Limit.model_validate(one) for one in yaml.safe_load(path.read_text(encoding="utf-8"))["limits"])
        names = [one.name for one in each]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{path.name} sets {', '.join(sorted(twice))} more than once")
        return cls(each)

    @property
    def names(self) -> frozenset[str]:
        """``key.figure`` of each."""
        return frozenset(one.name for one in self.each)

    def judge(self, figures: Figures) -> list[Verdict]:
        """Compare."""
        return [Verdict(one, figures.get(one.key, {}).get(one.figure)) for one in self.each]


def figures(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Return the figures of all rows, by key."""
    return {row.key: dict(row.figures()) for row in rows}


@dataclass(frozen=True, slots=True)
class Seen:
    """One figure over several runs."""

    mean: float
    spread: float
    runs: int
    most: float


def summary(runs: Sequence[Figures]) -> dict[str, Seen]:
    """Return what was seen of each figure over several runs, by ``key.figure``."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for key, found in run.items():
            for figure, value in found.items():
                values.setdefault(f"{key}.{figure}", []).append(value)
    return {name: Seen(statistics.fmean(one), max(one) - min(one), len(one), max(one)) for name, one in values.items()}


def measured(limits: Limits, seen: Mapping[str, Seen], date: str, machine: str) -> Limits:
    """Return the limits with what was seen in the place of what stood there; those not measured stay as they are."""
    return Limits(tuple(_measured(one, seen.get(one.name), date, machine) for one in limits.each))


def _measured(limit: Limit, seen: Seen | None, date: str, machine: str) -> Limit:
    if seen is None:
        return limit
    found = Measured(mean=_rounded(seen.mean), spread=_rounded(seen.spread), runs=seen.runs, date=date, machine=machine)
    margin = _rounded(limit.limit / seen.mean) if seen.mean else None
    return limit.model_copy(update={"measured": found, "margin": margin})


def _rounded(value: float) -> float:
    """Return *value* with three digits."""
    return float(f"{value:.3g}")


def text(limits: Limits, head: str) -> str:
    """Return the file: the comment *head*, then a limit each, with what was measured on a line of its own."""
    return head + "limits:\n" + "".join(_entry(one) for one in limits.each)


def _entry(limit: Limit) -> str:
    said = limit.model_dump(exclude_none=True, exclude={"measured", "margin"})
    if not limit.unit:
        del said["unit"]
    lines = f"  - {{{_flow(said)}"
    if limit.measured is not None:
        margin = f", margin: {limit.margin}" if limit.margin is not None else ""
        lines += f",\n     measured: {{{_flow(limit.measured.model_dump())}}}{margin}"
    return lines + "}\n"


def _flow(members: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {_scalar(name, value)}" for name, value in members.items())


def _scalar(name: str, value: object) -> str:
    plain = name in ("key", "figure") or not isinstance(value, str)
    number = isinstance(value, float) and value == int(value)
    return str(int(value) if number else value).lower() if plain else json.dumps(value)  # type: ignore[call-overload]


def heading(path: Path = FILE) -> str:
    """Return the comment at the file's head."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("#"))


def together(limits: Limits, seen: Mapping[str, Seen]) -> str:
    """Return the table of several runs: every figure, and what its limit says to the worst of them."""
    named = {one.name: one for one in limits.each}
    head = ("figure", "mean", "spread", "runs", "most", "limit", "")
    rows = []
    for name, one in seen.items():
        limit = named.get(name)
        verdict = "" if limit is None else Verdict(limit, one.most).cells()[-1]
        bound = f"<= {short(limit.limit)}" if limit is not None else ""
        rows.append((name, short(one.mean), short(one.spread), str(one.runs), short(one.most), bound, verdict))
    return "\n".join([line(head), "|---|---:|---:|---:|---:|---:|---|", *(line(row) for row in rows)])


def render(verdicts: Sequence[Verdict]) -> str:
    """Return the table of limits."""
    head = ("limit", "this run", "limit", "when it was set", "", "")
    return "\n".join([line(head), "|---|---:|---:|---:|---|---|", *(line(one.cells()) for one in verdicts)])
