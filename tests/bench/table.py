"""The Markdown table: one row per measure, ours beside the Job controller's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.bench.samples import Samples, ratio

HEAD = ("measure", "N", "operator p50", "p99", "Job controller p50", "p99", "ratio of medians")
NOTHING = "-"
NOTES = """\
- p99 is by nearest rank: below 100 samples it is the largest. A single sample has none.
- Ratio: the Job controller's median over the operator's; above 1x the operator's is the smaller.
- After an interruption the Job controller waits 10, 20, 40 s ... by design. That is its policy, not its speed; its
  speed shows in the first pods.
- A run's first pod comes after the operator has read the Secret, tried the bucket and looked for an image; a Job's
  pod needs none of that.
- Interrupted pods claim to have run for a minute: after attempts shorter than 10 s the operator waits a little too."""
"""What must be known to read the table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. *number* is how many were at it at once; *jobs* is None where nothing stands against it."""

    measure: str
    number: int
    ours: Samples
    jobs: Samples | None = None
    unit: str = "s"

    def cells(self) -> tuple[str, ...]:
        """The row's cells, without their bars. A single value has no p99."""
        times = ratio(self.jobs, self.ours)
        return (
            self.measure,
            str(self.number),
            *_side(self.ours, self.unit),
            *_side(self.jobs, self.unit),
            f"{short(times)}x" if times is not None else NOTHING,
        )

    @property
    def missing(self) -> str | None:
        """What did not happen, in words; None if all did."""
        lacking = {
            name: side.missing
            for name, side in (("the operator", self.ours), ("the Job controller", self.jobs))
            if side is not None and side.missing
        }
        if not lacking:
            return None
        return f"{self.measure} (N = {self.number}): " + ", ".join(
            f"{count} missing of {name}" for name, count in lacking.items()
        )


def render(rows: Sequence[Row]) -> str:
    """Return the table, one line per row, without a line's end at its end."""
    return "\n".join(_lines(rows))


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield line(HEAD)
    yield "|---|" + "---:|" * (len(HEAD) - 1)
    for row in rows:
        yield line(row.cells())


def line(cells: Sequence[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _side(samples: Samples | None, unit: str) -> tuple[str, str]:
    if samples is None:
        return NOTHING, NOTHING
    many = len(samples.values) + samples.missing > 1
    lacking = f" ({samples.missing} missing)" if samples.missing else ""
    return _said(samples.median, unit) + lacking, _said(samples.percentile(99) if many else None, unit)


def _said(value: float | None, unit: str) -> str:
    return f"{short(value)} {unit}".rstrip() if value is not None else NOTHING


def short(value: float) -> str:
    """Two or three digits, and whole numbers as such."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 1 else f"{value:.3g}"
