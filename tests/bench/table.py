"""The Markdown table: one row per measure, ours beside the Job controller's. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.samples import Samples, ratio

HEAD = ("measure", "tier", "N", "operator p50", "p99", "Job controller p50", "p99", "ratio of medians")
NOTHING = "-"
NOTES = """\
- Tier: hollow = real API server, etcd, bucket and operator process with the chart's rights; pods that no node takes,
  whose statuses the bench writes. No trainer, no kubelet, no GPU.
- p99 is by nearest rank: below 100 samples it is the largest. A single sample has none.
- Ratio: the operator's median over the Job controller's; below 1x the operator's is the smaller.
- After an interruption the Job controller waits 10, 20, 40 s ... by design. That is its policy, not its speed; its
  speed shows in the pods created a second.
- A run's first pod comes after the operator has read the Secret, tried the bucket, looked for an image and put its
  owner mark; a Job's pod needs none of that.
- Interrupted pods claim to have run for a minute: after attempts shorter than 10 s the operator waits a little too."""
"""What must be known to read the table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. *key* names it in limits.yaml; *number* is how many were at it at once, or how many were there.

    *jobs* is None where nothing stands against it.
    """

    key: str
    measure: str
    number: int
    ours: Samples
    jobs: Samples | None = None
    unit: str = "s"
    tier: str = "hollow"

    def cells(self) -> tuple[str, ...]:
        """The row's cells, without their bars. A single value has no p99."""
        times = ratio(self.ours, self.jobs)
        return (
            self.measure,
            self.tier,
            f"{self.number:,}",
            *_side(self.ours, self.unit),
            *_side(self.jobs, self.unit),
            f"{short(times)}x" if times is not None else NOTHING,
        )

    def figures(self) -> Mapping[str, float]:
        """Return what limits may be set on: p50, p99 and ratio, as far as they are known."""
        found = {"p50": self.ours.median, "p99": self.ours.percentile(99), "ratio": ratio(self.ours, self.jobs)}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def missing(self) -> str | None:
        """What the operator did not do, in words; None if it did all. What a Job lacks stands in the table only."""
        if not self.ours.missing:
            return None
        return f"{self.measure} (N = {self.number:,}): {self.ours.missing} missing of the operator"


def render(rows: Sequence[Row]) -> str:
    """Return the table, one line per row, without a line's end at its end."""
    return "\n".join(_lines(rows))


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield line(HEAD)
    yield "|---|---|" + "---:|" * (len(HEAD) - 2)
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
