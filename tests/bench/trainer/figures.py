"""What was measured of the trainer, as rows of a Markdown table and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.table import NOTHING, line, short

HEAD = ("measure", "ours", "beside", "what stands beside", "ratio", "target", "met")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure, and what it is compared with."""

    measure: str
    ours: float | None
    """None where it could not be measured here."""
    unit: str = ""
    beside: float | None = None
    what: str = ""
    """What *beside* is."""
    target: float | None = None
    """The ratio is to be no more than this; without *beside*, the value itself."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over what stands beside it."""
        return self.ours / self.beside if self.ours is not None and self.beside else None

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None where there is none, or nothing to judge by."""
        found = self.ratio if self.what else self.ours
        return found <= self.target if found is not None and self.target is not None else None

    def cells(self) -> tuple[str, ...]:
        """The row's cells, without their bars."""
        target = f"<= {short(self.target)}{'x' if self.what else ''}" if self.target is not None else NOTHING
        return (
            self.measure,
            _said(self.ours, self.unit),
            _said(self.beside, self.unit),
            self.what or NOTHING,
            f"{short(self.ratio)}x" if self.ratio is not None else NOTHING,
            target,
            {True: "yes", False: "**no**", None: NOTHING}[self.met],
        )


def render(figures: Sequence[Figure]) -> str:
    """Return the table, and below it a list of the notes."""
    rows = [line(HEAD), "|---|---:|---:|---|---:|---:|---|", *(line(one.cells()) for one in figures)]
    return "\n".join([*rows, "", *(f"- {one.measure}: {one.note}" for one in figures if one.note)])


def to_json(figures: Sequence[Figure], machine: str) -> dict[str, Any]:
    """Return all that the table says, for programs."""
    rows = [{**asdict(one), "ratio": one.ratio, "met": one.met} for one in figures]
    return {"machine": machine, "figures": rows, "missed": [one.measure for one in figures if one.met is False]}


def median(values: Sequence[float]) -> float | None:
    """Return the middle value; None of nothing."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ((ordered[half] + ordered[~half]) / 2) if ordered else None


def _said(value: float | None, unit: str) -> str:
    return f"{short(value)} {unit}".rstrip() if value is not None else NOTHING
