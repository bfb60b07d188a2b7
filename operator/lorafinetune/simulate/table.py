"""Figures as people read them: one line for each policy, then what each went through."""

from __future__ import annotations

from collections.abc import Sequence

from lorafinetune.engine.times import duration
from lorafinetune.simulate.figures import Figures

HEADINGS = ("POLICY", "COST", "SAVED", "FINISHED", "LATE", "MEDIAN", "P90", "LOST", "OVERHEAD", "TAKEN", "ON-DEMAND")
SHORTEST_WAIT = 1.0
"""Seconds of a run, in the mean, below which a wait is not worth a word."""


def table(found: Sequence[Figures], *, has_deadline: bool) -> str:
    """Return the table of all policies, and what lies behind each line."""
    rows = [HEADINGS, *(_row(one, has_deadline) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for one in found:
        lines += ["", f"{one.policy}: {one.words}", *_story(one)]
    return "\n".join(lines)


def _row(one: Figures, has_deadline: bool) -> tuple[str, ...]:
    return (
        one.policy,
        f"{one.cost:.2f}",
        _percent(one.saved) if one.saved is not None else "-",
        f"{one.finished}/{one.runs}",
        str(one.late) if has_deadline else "-",
        _time(one.finish_median),
        _time(one.finish_p90),
        duration(sum(one.lost.values())),
        f"{100 * one.overhead:.2f}%",
        str(one.preemptions),
        _percent(one.on_demand_seconds / one.gpu_seconds) if one.gpu_seconds else "-",
    )


def _story(one: Figures) -> list[str]:
    lines = [f"  GPU time {duration(one.gpu_seconds)}, of that starting {duration(one.starting)}"]
    lines.append(f"  attempts: {_listed({name: str(count) for name, count in one.attempts.items()})}")
    if one.lost:
        lines.append(f"  work lost: {_listed({name: duration(seconds) for name, seconds in one.lost.items()})}")
    waits = {name: duration(seconds) for name, seconds in one.waits.items() if seconds >= SHORTEST_WAIT}
    lines.append(f"  a run's time, in the mean: {_listed(waits)}")
    if one.failed:
        why = _listed({reason: str(count) for reason, count in one.failed_by.items()})
        lines.append(
            f"  ended before the last step: {why}; {one.published} of them published the LoRA of what was done"
        )
    lines.append(f"  COST as the status of the runs adds it up: {one.ledger:.2f}; {one.looks} looks of the operator")
    return lines


def _listed(parts: dict[str, str]) -> str:
    return ", ".join(f"{name} {words}" for name, words in parts.items()) or "none"


def _percent(part: float) -> str:
    return f"{round(100 * part)}%"


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds is not None else "-"
