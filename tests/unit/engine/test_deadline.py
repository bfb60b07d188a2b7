"""Where a run with a deadline is next: tables, and never a feasible deadline missed, whatever spot does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafinetune.engine.availability import FIRST_AGE, Seen
from lorafinetune.engine.deadline import Choice, Prices, choose
from lorafinetune.simulate.job import Job, Moment, Policy, play

HOUR = 3600.0
PRICES = Prices(0.92, 3.06)
SPOT, ON_DEMAND, WAIT = Choice.SPOT, Choice.ON_DEMAND, Choice.WAIT


def seen(available: bool | None, *, for_seconds: float = 0.0, before: bool | None = None) -> Seen:
    """Spot as it is now, since *for_seconds*, with looks every 195 s."""
    known = Seen().then((not available) if before is None else before, 195.0).then(available, 195.0)
    for _ in range(int(for_seconds // 195)):
        known = known.then(available, 195.0)
    return known


def calm() -> Seen:
    """Spot for a week, and then two hours and more of which nobody knows."""
    known = Seen()
    for look in range(1000 + 13):
        known = known.then(True if look < 1000 else None, 600.0)
    return known


TABLE = [
    ("done", {"remaining": 0.0}, WAIT),
    ("spot is there, and slack", {"seen": seen(True)}, SPOT),
    ("spot is there, but no slack to lose it", {"seen": seen(True), "time_left": 4 * HOUR + 500}, ON_DEMAND),
    ("spot has just gone, and slack", {"seen": seen(False), "time_left": 8 * HOUR}, WAIT),
    ("spot has gone, no slack", {"seen": seen(False), "time_left": 4 * HOUR + 400}, ON_DEMAND),
    ("spot runs, and goes on", {"seen": seen(True), "running": SPOT, "time_left": 4 * HOUR + 301}, SPOT),
    (
        "spot that runs is left while on-demand is in time",
        {"seen": seen(True), "running": SPOT, "restart_left": 300.0, "time_left": 4 * HOUR + 400},
        ON_DEMAND,
    ),
    (
        "spot that makes progress is kept when it is late",
        {"seen": seen(True), "running": SPOT, "time_left": 4 * HOUR},
        SPOT,
    ),
    ("on demand, spot has been back for long", {"seen": seen(True, for_seconds=4 * HOUR), "running": ON_DEMAND}, SPOT),
    (
        "on demand, at the end of the work",
        {"seen": seen(True), "running": ON_DEMAND, "remaining": 100.0, "time_left": 2 * HOUR},
        ON_DEMAND,
    ),
    ("on demand, nobody knows of spot", {"seen": seen(None, before=False), "running": ON_DEMAND}, ON_DEMAND),
    (
        "on demand, nobody has known for hours",
        {
            "seen": seen(None, before=True, for_seconds=3 * HOUR),
            "running": ON_DEMAND,
            "remaining": 20 * HOUR,
            "time_left": 40 * HOUR,
            "patience": 600.0,
        },
        SPOT,
    ),
    (
        "what a try finds has likely been there for long",
        {
            "seen": seen(None, before=True, for_seconds=3 * HOUR),
            "running": ON_DEMAND,
            "remaining": 40 * HOUR,
            "time_left": 42 * HOUR,
            "restart_cost": 720.0,
            "patience": 600.0,
        },
        SPOT,
    ),
    (
        "so, but without slack for a try",
        {
            "seen": seen(None, before=True, for_seconds=3 * HOUR),
            "running": ON_DEMAND,
            "remaining": 20 * HOUR,
            "time_left": 20 * HOUR + 1000,
            "patience": 600.0,
        },
        ON_DEMAND,
    ),
    (
        "spot has just gone, and the next look would be too late",
        {"seen": seen(False), "time_left": 4 * HOUR + 120 + 150, "restart_cost": 120.0, "tick": 600.0},
        ON_DEMAND,
    ),
    (
        "so, in a zone that hardly ever loses spot",
        {"seen": calm(), "running": ON_DEMAND, "time_left": 5 * HOUR, "restart_cost": 120.0} | {"patience": 600.0},
        SPOT,
    ),
    (
        "so, but a try that fails would be too late",
        {"seen": calm(), "running": ON_DEMAND, "time_left": 4 * HOUR + 120 + 690, "restart_cost": 120.0}
        | {"patience": 600.0},
        ON_DEMAND,
    ),
    ("spot is no cheaper", {"seen": seen(True), "prices": Prices(3.0, 3.0)}, ON_DEMAND),
    ("too late for anything", {"seen": seen(False), "time_left": HOUR}, ON_DEMAND),
    (
        "the first look finds none, and next to no slack",
        {"seen": Seen().then(False, 600.0), "time_left": 4 * HOUR + 800},
        ON_DEMAND,
    ),
    (
        "work at risk is slack that is not there",
        {"seen": seen(True), "time_left": 4 * HOUR + 900, "exposure": 400.0},
        ON_DEMAND,
    ),
]


@pytest.mark.parametrize(("changes", "want"), [pytest.param(changes, want, id=name) for name, changes, want in TABLE])
def test_where_next(changes: dict[str, object], want: Choice) -> None:
    plain: dict[str, object] = {
        "progress": HOUR,
        "remaining": 4 * HOUR,
        "time_left": 6 * HOUR,
        "seen": seen(True),
        "restart_cost": 300.0,
        "prices": PRICES,
    }
    assert choose(**(plain | changes)) is want  # type: ignore[arg-type]


def test_what_is_seen_is_folded() -> None:
    first = Seen().then(True, 100.0)
    assert (first.available, first.age, first.tick) == (True, FIRST_AGE, 100.0)
    lost = first.then(True, 100.0).then(False, 100.0)
    assert (lost.available, lost.age) == (False, 0.0)
    blind = lost.then(None, 50.0).then(None, 50.0)
    assert (blind.available, blind.last, blind.unknown) == (None, False, 150.0)
    again = blind.then(False, 50.0)
    assert (again.age, again.unknown) == (200.0, 0.0)


def policy_of(job: Job, *, told: bool, visible: bool) -> Policy:
    known = Seen()

    def policy(moment: Moment) -> Choice:
        nonlocal known
        known = known.then(moment.available, job.tick)
        return choose(
            moment.progress,
            moment.remaining,
            moment.time_left,
            known,
            job.restart_cost,
            job.prices,
            running=moment.running,
            restart_left=moment.restart_left,
            tick=job.tick if told else None,
            patience=0.0 if visible else job.patience + job.tick,
        )

    return policy


@settings(deadline=None, max_examples=60)
@given(
    work=st.sampled_from([1.0, 4.0, 10.0]),
    stretch=st.sampled_from([1.0, 1.01, 1.05, 1.3, 2.0]),
    restart=st.sampled_from([0.0, 120.0, 300.0, 700.0, 1200.0]),
    tick=st.sampled_from([195.0, 600.0]),
    spare=st.sampled_from([0.0, 1.0, 200.0, 1000.0]),
    windows=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    first=st.booleans(),
    told=st.booleans(),
    visible=st.booleans(),
)
def test_a_feasible_deadline_is_met_whatever_spot_does(
    work: float,
    stretch: float,
    restart: float,
    tick: float,
    spare: float,
    windows: list[int],
    first: bool,
    told: bool,
    visible: bool,
) -> None:
    job = Job(work * HOUR, work * HOUR * stretch + restart + spare, restart, tick, PRICES, patience=600.0)
    ticks = int(job.deadline // tick) + 1
    trace = [(index % 2 == 0) == first for index, length in enumerate(windows) for _ in range(length)]
    trace = (trace * (ticks // len(trace) + 1))[:ticks]
    assert play(job, trace, policy_of(job, told=told, visible=visible), visible=visible).met


def adversary(job: Job, there: list[bool], inner: Policy) -> Policy:
    """Takes spot away as soon as its start is all but paid."""

    def policy(moment: Moment) -> Choice:
        following = round((job.deadline - moment.time_left) / job.tick) + 1
        choice = inner(moment)
        paid = choice is SPOT and moment.running is SPOT and moment.restart_left < job.tick
        if paid and following < len(there):
            there[following] = False
        return choice

    return policy


@pytest.mark.parametrize("restart", [120.0, 300.0, 1200.0])
@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("stretch", [1.0, 1.1, 1.5])
def test_spot_that_is_lost_whenever_it_would_hurt_most_makes_nobody_late(
    restart: float, visible: bool, stretch: float
) -> None:
    job = Job(3 * HOUR, 3 * HOUR * stretch + restart, restart, 195.0, PRICES, patience=600.0)
    there = [True] * (int(job.deadline // job.tick) + 1)
    policy = adversary(job, there, policy_of(job, told=False, visible=visible))
    assert play(job, there, policy, visible=visible).met


@pytest.mark.parametrize("running", [WAIT, ON_DEMAND])
@pytest.mark.parametrize("available", [True, False, None])
@pytest.mark.parametrize("restart", [60.0, 300.0, 1800.0])
@pytest.mark.parametrize("look", [60.0, 195.0, 3600.0])
def test_the_safety_net_needs_no_reserve(
    monkeypatch: pytest.MonkeyPatch, running: Choice, available: bool | None, restart: float, look: float
) -> None:
    """With no reserve at all, what may be lost until the next look still leaves on-demand in time."""
    monkeypatch.setattr("lorafinetune.engine.deadline.reserve", lambda *_, **__: 0.0)
    known = Seen().then(True if available is None else available, look)
    for _ in range(int(3 * HOUR // look)):
        known = known.then(available, look)
    chosen = set()
    for slack in range(-100, 12_000, 50):
        choice = choose(
            0.0, 16 * HOUR, 16 * HOUR + restart + slack, known, restart, PRICES, running=running, patience=600.0
        )
        lost = {
            WAIT: look,
            SPOT: min(look, restart) if available else max(look, 600.0) + restart,
            ON_DEMAND: -float("inf"),
        }
        assert slack >= lost[choice], (slack, choice)
        chosen.add(choice)
    assert len(chosen) == 2
