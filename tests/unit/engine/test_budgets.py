"""What an ending costs: which is forgiven how often, how long the pause is, and what changes when nothing comes of it."""

# ruff: noqa: E501 - a table is read by its rows

from typing import Any

import pytest

from lorafinetune.api.limits import AttemptLimits
from lorafinetune.api.status import AttemptStatus, LostStatus, Totals
from lorafinetune.engine import budgets, ledger, streaks
from lorafinetune.engine.ledger import fold_oldest
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, UID, status


def life(number: int, cause: str, *, lived: float = 60.0, before: float = 0.0, **changes: Any) -> AttemptStatus:
    plain = AttemptStatus(
        number=number, pod=f"timber-{number}", pool="spot", price_per_hour="0.36", cause=cause, reason=cause, message="so",
        scheduled=stamp(NOW - lived - before), started=stamp(NOW - lived - before), ended=stamp(NOW - before),
        from_step=100, to_step=110,
    )  # fmt: skip
    return plain.model_copy(update=changes)


def row(*causes: str, **changes: Any) -> list[AttemptStatus]:
    return [life(number, cause, **changes) for number, cause in enumerate(causes, 1)]


def verdict(attempts: list[AttemptStatus], limits: dict[str, Any] | None = None, **known: Any):
    given = status(*attempts, **known)
    given = given.model_copy(update=ledger.counted(given))
    return budgets.after(given, AttemptLimits.model_validate(limits or {}), run=UID)


PREEMPTED, BROKEN, LOST = "Preempted", "Infrastructure", "NodeLost"
NEW = {"durable_step": 120}
OVER: list[tuple[str, list[AttemptStatus], dict[str, Any], str | None]] = [
    # name, attempts, limits, the reason of the end (None = another attempt follows)
    ("preempted eleven times with nothing to show", row(*[PREEMPTED] * 11), {}, None),
    ("a twelfth time: no progress", row(*[PREEMPTED] * 12), {}, "NoProgress"),
    ("lost nodes are of the same kind", row(*[PREEMPTED] * 6, *[LOST] * 6), {}, "NoProgress"),
    ("twenty times, each with a checkpoint", row(*[PREEMPTED] * 20, **NEW), {}, None),
    ("a checkpoint in the middle begins the count anew", [*row(*[PREEMPTED] * 11), life(12, PREEMPTED, **NEW), *row(*[PREEMPTED] * 2)], {}, None),
    ("a user's suspend between them does not", row(*[PREEMPTED] * 6, "Suspended", "Fenced", "NoCapacity", "Moved", *[PREEMPTED] * 6), {}, "NoProgress"),
    ("taken away while it waited for a node: says nothing of nodes", row(*[PREEMPTED] * 13, scheduled=None, started=None), {}, None),
    ("the user may want fewer", row(*[PREEMPTED] * 3), {"withoutProgress": 3}, "NoProgress"),
    ("preemptions have no number of their own", row(*[PREEMPTED] * 19, **NEW), {}, None),
    ("unless the user gives one", row(*[PREEMPTED] * 4, **NEW), {"preemptions": 3}, "TooManyPreemptions"),
    ("which is the last that is survived", row(*[PREEMPTED] * 3, **NEW), {"preemptions": 3}, None),
    ("none at all", row(PREEMPTED, **NEW), {"preemptions": 0}, "TooManyPreemptions"),
    ("infrastructure six times", row(*[BROKEN] * 6), {}, None),
    ("a seventh time", row(*[BROKEN] * 7), {}, BROKEN),
    ("a checkpoint in between begins the count anew", [*row(*[BROKEN] * 6), life(7, PREEMPTED, **NEW), life(8, BROKEN)], {}, None),
    ("a preemption without one does not", row(*[BROKEN] * 6, PREEMPTED, BROKEN), {}, BROKEN),
    ("the user may want none", row(BROKEN), {"infrastructure": 0}, BROKEN),
    ("one training error", row("Error"), {}, None),
    ("two, whatever lay between", row("Error", PREEMPTED, "Error"), {}, "Error"),
    ("three are allowed", row("Error", "Error", "Error"), {"trainingErrors": 3}, None),
    ("out of memory once", row("OutOfMemory"), {}, None),
    ("twice", row("OutOfMemory", PREEMPTED, "OutOfMemory"), {}, "OutOfMemory"),
    ("not even once", row("OutOfMemory"), {"outOfMemory": 0}, "OutOfMemory"),
    ("a user's error", row("Invalid"), {"trainingErrors": 9}, "Invalid"),
    ("NaN comes again", row("Error", reason="NaNLoss"), {"trainingErrors": 9}, "NaNLoss"),
    ("what we ended ourselves spends nothing", row(*["NoCapacity", "Moved", "Suspended", "Fenced"] * 5), {"preemptions": 0, "infrastructure": 0, "trainingErrors": 0}, None),
]  # fmt: skip


@pytest.mark.parametrize(("attempts", "limits", "reason"), [one[1:] for one in OVER], ids=[one[0] for one in OVER])
def test_what_is_forgiven(attempts, limits, reason):
    found = verdict(attempts, limits)
    assert (found.reason if isinstance(found, budgets.Over) else None) == reason
    if reason in ("NoProgress", "TooManyPreemptions"):
        assert "spec.limits.attempts." in found.message


def test_what_the_list_has_forgotten_still_counts():
    limits = {"withoutProgress": 40}
    for times, kind in ((39, budgets.Again), (40, budgets.Over)):
        whole = [life(number, PREEMPTED) for number in range(1, times + 1)]
        folded = fold_oldest(status().model_copy(update={"attempts": whole}), 20)
        assert folded.totals is not None
        assert folded.totals.without_progress == times - 20
        assert isinstance(verdict(folded.attempts, limits, totals=folded.totals), kind)
    errors = Totals(attempts=5, lost=[LostStatus(cause="Error", attempts=1)])
    assert isinstance(verdict(row("Error"), totals=errors), budgets.Over)


PAUSES = [
    # name, attempts, the longest pause in seconds; the shortest is half of it
    ("preempted after a minute", row(PREEMPTED), 0.0),
    ("preempted at once", row(PREEMPTED, lived=3), 5.0),
    ("three times at once", row(*[PREEMPTED] * 3, lived=3), 20.0),
    ("three times at once, but each left a checkpoint", row(*[PREEMPTED] * 3, lived=3, **NEW), 0.0),
    ("a training error", row("Error"), 5.0),
    ("out of memory", row("OutOfMemory"), 5.0),
    ("infrastructure, the third", row(*[BROKEN] * 3), 20.0),
    ("never more than five minutes", row(*[BROKEN] * 9), 300.0),
    ("fenced once", row("Fenced"), 0.0),
    ("fenced three times", row(*["Fenced"] * 3), 10.0),
    ("moved by us", row("Moved"), 0.0),
]


@pytest.mark.parametrize(("attempts", "longest"), [one[1:] for one in PAUSES], ids=[one[0] for one in PAUSES])
def test_pauses(attempts, longest):
    found = verdict(attempts, {"infrastructure": 50})
    assert isinstance(found, budgets.Again)
    assert longest / 2 <= found.not_before - NOW <= longest


def test_runs_that_fell_together_do_not_rise_together_yet_each_pause_is_the_same_when_asked_again():
    given = status(*row(*[BROKEN] * 4))
    pauses = {}
    for number in range(50):
        found = budgets.after(given, AttemptLimits(), run=f"run-{number}")
        assert found == budgets.after(given, AttemptLimits(), run=f"run-{number}")
        pauses[number] = found.not_before - NOW
    assert len(set(pauses.values())) > 40
    assert 20 <= min(pauses.values()) < 22
    assert 38 < max(pauses.values()) <= 40


def test_attempts_that_come_to_nothing_save_sooner_then_go_elsewhere():
    def after(times: int, **changes: Any):
        return status(*row(*[PREEMPTED] * times, **changes))

    usual = AttemptLimits()
    assert budgets.lifetime(1800.0, after(2), usual) == 1800.0
    assert budgets.lifetime(1800.0, after(3, lived=4000), usual) == 450.0
    assert budgets.lifetime(1800.0, after(3, lived=60), usual) == 15.0, "what it lived itself is the better guess"
    assert budgets.lifetime(1800.0, after(3, **NEW), usual) == 1800.0
    assert budgets.avoided(after(5), usual) is None
    assert budgets.avoided(after(6), usual) == "spot"
    assert budgets.avoided(after(6, **NEW), usual) is None
    assert budgets.avoided(after(6), AttemptLimits(without_progress=40)) is None
    assert streaks.of(after(6)).without_progress == 6
