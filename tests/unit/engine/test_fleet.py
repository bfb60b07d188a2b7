"""What all runs together know of the pools: folded as it comes, and again after a restart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine.cadence import told_lifetime
from lorafinetune.engine.fleet import (
    FIRST_PAUSE,
    MAX_PAUSE,
    RATES_FADE,
    TAKEN_FADES,
    Fact,
    Fading,
    News,
    PoolKnown,
    forget,
    learn,
)
from lorafinetune.engine.news import fold, recall
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, status


def one(number: int = 1, **times: Any) -> LoRAFineTuneStatus:
    """A run with one attempt on pool spot; instants are seconds before now."""
    shown = {name: stamp(NOW - ago) if isinstance(ago, float) else ago for name, ago in times.items()}
    return status(attempt(number, **({"created": stamp(NOW - 1000), "started": None} | shown)))


WAITS = one()
DRY = one(dry=900.0, message="no node in 10m")
PLACED = one(scheduled=800.0)
RUNS = one(scheduled=800.0, started=780.0)
TAKEN = one(scheduled=800.0, started=780.0, ended=100.0, cause="Preempted")
FAILED = one(scheduled=800.0, started=780.0, ended=100.0, cause="Infrastructure")
LATE_DRY = one(dry=900.0, scheduled=800.0)


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [
        pytest.param(None, WAITS, None, id="one that waits tells nothing"),
        pytest.param(WAITS, DRY, {"dry": NOW - 900, "tries": 1, "why": "no node in 10m"}, id="it is found dry"),
        pytest.param(DRY, DRY, None, id="which is told once"),
        pytest.param(WAITS, PLACED, {"placed": NOW - 800, "serving": 1}, id="it gives a node"),
        pytest.param(PLACED, RUNS, None, id="a start is no other node"),
        pytest.param(None, RUNS, {"placed": NOW - 800, "serving": 1}, id="after a restart"),
        pytest.param(None, LATE_DRY, {"placed": NOW - 800, "dry": None}, id="a node that came late is one"),
        pytest.param(None, TAKEN, {"taken": NOW - 100, "serving": 0}, id="it takes a node"),
        pytest.param(
            None,
            one(scheduled=800.0, started=780.0, ended=100.0, cause="Preempted", reason="KueueEvicted"),
            {"taken": None, "serving": 0},
            id="a queue that takes a place back is no pool's doing",
        ),
        pytest.param(None, FAILED, {"taken": None, "serving": 0}, id="other endings are no takes"),
    ],
)
def test_news(before, after, want):
    fleet = fold({}, before, after, NOW)
    if want is None:
        assert fleet == {}
        return
    assert {name: getattr(fleet["spot"], name) for name in want} == want


def test_rates():
    fleet = fold({}, None, TAKEN, NOW)
    known = fleet["spot"]
    assert known.exposed(NOW - 100) == pytest.approx(700)
    assert known.preempted(NOW - 100) == pytest.approx(1)
    assert known.preempted(NOW - 100 + RATES_FADE) == pytest.approx(0.5)
    assert known.usual_wait(NOW) == pytest.approx(200)
    assert PoolKnown().usual_wait(NOW) is None


def test_those_that_have_a_node_now_are_exposed_too():
    fleet = fold({}, WAITS, RUNS, NOW)
    assert fleet["spot"].exposed(NOW) == pytest.approx(800)
    gone = fold(fleet, RUNS, None, NOW)
    assert gone["spot"].serving == 0
    assert gone["spot"].exposed(NOW) == pytest.approx(800)
    assert gone["spot"].preempted(NOW) == 0


def test_a_cause_that_is_corrected_is_corrected_here():
    fleet = fold({}, None, FAILED, NOW)
    assert fold(fleet, FAILED, TAKEN, NOW)["spot"].preempted(NOW - 100) == pytest.approx(1)
    fleet = fold({}, None, TAKEN, NOW)
    assert fold(fleet, TAKEN, FAILED, NOW)["spot"].preempted(NOW - 100) == pytest.approx(0)


def test_a_preemption_that_is_taken_back_and_was_never_counted_leaves_none():
    spot = fold({}, TAKEN, FAILED, NOW)["spot"]
    assert spot.preempted(NOW) == 0
    assert told_lifetime(spot, CapacityType.SPOT, NOW) > 0


def dry(*times: float) -> PoolKnown:
    return learn({}, [Fact(NOW + when, "spot", News.DRY) for when in times])["spot"]


@pytest.mark.parametrize(
    ("times", "pause"),
    [
        ((0,), FIRST_PAUSE),
        ((0, 5, 9), FIRST_PAUSE),
        ((0, 700), 2 * FIRST_PAUSE),
        ((0, 700, 2000), 4 * FIRST_PAUSE),
        (tuple(5000 * n for n in range(20)), MAX_PAUSE),
    ],
    ids=["once", "by several runs at once", "again after its pause", "and again", "an hour at most"],
)
def test_the_pause_of_a_dry_pool(times, pause):
    known = dry(*times)
    assert known.open_again() == NOW + times[-1] + pause
    assert known.is_dry(known.open_again() - 1)
    assert not known.is_dry(known.open_again())


def test_a_node_ends_the_drought_and_its_memory():
    facts = [Fact(NOW, "spot", News.DRY), Fact(NOW + 700, "spot", News.DRY), Fact(NOW + 800, "spot", News.PLACED)]
    known = learn({}, facts)["spot"]
    assert not known.is_dry(NOW + 800)
    assert learn({"spot": known}, [Fact(NOW + 900, "spot", News.DRY)])["spot"].tries == 1
    assert not learn({"spot": known}, [Fact(NOW + 750, "spot", News.DRY)])["spot"].is_dry(NOW + 800), "old news"


def test_who_gets_no_node_where_others_do_makes_no_pool_dry():
    """It may be that no node fits it, by a policy of its namespace: that is no news for anybody else."""
    placed = fold({}, None, one(scheduled=950.0), NOW)
    assert fold(placed, WAITS, DRY, NOW)["spot"].dry is None
    before = fold({}, None, one(created=2000.0, scheduled=1001.0), NOW)
    assert fold(before, WAITS, DRY, NOW)["spot"].dry == NOW - 900, "they got theirs before it began to wait"


def test_a_pool_keeps_the_platforms_words_and_not_what_one_run_made_of_them():
    left = one(
        dry=900.0, message="spot has no node (no node in 10m): going to dear, on demand after 10m", reason="PoolDry"
    )
    assert fold({}, WAITS, left, NOW)["spot"].why == "no node in 10m"
    cut = one(dry=900.0, message="spot has no node (no node in 10m: 0/9 nod…")
    assert fold({}, WAITS, cut, NOW)["spot"].why == "no node in 10m: 0/9 nod…"


def test_an_edited_pool_is_another():
    fleet = learn({}, [Fact(NOW, "spot", News.DRY), Fact(NOW, "spot", News.TAKEN, 1.0)])
    known = forget(fleet, "spot")["spot"]
    assert not known.is_dry(NOW)
    assert known.penalty(NOW) == 0
    assert known.preempted(NOW) == 1, "how long its nodes live is worth keeping"


def test_a_pool_that_was_found_dry_comes_after_its_equals_and_before_the_next_place():
    found = PoolKnown(dry=NOW, tries=1)
    due = found.open_again()
    assert found.penalty(due) == pytest.approx(0.5)
    assert found.penalty(due + TAKEN_FADES) == pytest.approx(0.25)
    assert PoolKnown(dry=NOW, tries=30).penalty(NOW) < 1.0001
    assert PoolKnown(placed=NOW).penalty(NOW) == 0


def test_the_penalty_fades_and_is_less_where_nodes_were_left():
    known = learn({}, [Fact(NOW, "spot", News.TAKEN, 1.0)])["spot"]
    assert known.penalty(NOW) == pytest.approx(2)
    assert known.penalty(NOW + TAKEN_FADES) == pytest.approx(1)
    assert PoolKnown(live=9, taken=NOW, takes=Fading(1.0, NOW)).penalty(NOW) == pytest.approx(0.2)


INSTANTS = st.integers(0, 10_000)


@st.composite
def histories(draw: st.DrawFn) -> list[LoRAFineTuneStatus]:
    """The stages of one run's status, as they were written one after the other."""
    stages, attempts, clock = [LoRAFineTuneStatus()], [], float(draw(INSTANTS))
    for number in range(1, draw(st.integers(1, 4)) + 1):
        entry = attempt(number, pool=draw(st.sampled_from(["a", "b"])), started=None, created=stamp(NOW + clock))
        changes: list[dict[str, Any]] = []
        if draw(st.booleans()):
            clock += draw(st.integers(10, 900))
            changes.append({"dry": stamp(NOW + clock)})
        clock += draw(st.integers(10, 900))
        if draw(st.booleans()):
            changes.append({"scheduled": stamp(NOW + clock)})
            clock += draw(st.integers(1, 9000))
            changes.append({"ended": stamp(NOW + clock), "cause": draw(st.sampled_from(["Preempted", "Error"]))})
        else:
            changes.append({"ended": stamp(NOW + clock), "cause": "NoCapacity"})
        for change in [{}, *changes]:
            entry = entry.model_copy(update=change)
            stages.append(LoRAFineTuneStatus(attempts=[*attempts, entry]))
        attempts.append(entry)
    return stages


@settings(max_examples=200, deadline=None)
@given(st.lists(histories(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_restarted_operator_knows_what_the_old_one_knew(runs, random):
    """But for how often a pool was found dry in a row, where runs were heard in another order."""
    fleet, places = {}, [0] * len(runs)
    while any(place < len(stages) - 1 for place, stages in zip(places, runs, strict=True)):
        which = random.choice([n for n, stages in enumerate(runs) if places[n] < len(stages) - 1])
        places[which] += 1
        fleet = fold(fleet, runs[which][places[which] - 1], runs[which][places[which]], NOW)
    again = recall([stages[-1] for stages in runs], NOW)
    assert fleet.keys() == again.keys()
    for name, known in fleet.items():
        for what in ("placed", "taken", "serving"):
            assert getattr(known, what) == getattr(again[name], what), what
        for what in ("exposed", "preempted", "usual_wait"):
            assert getattr(known, what)(NOW + 50_000) == pytest.approx(getattr(again[name], what)(NOW + 50_000)), what
        assert known.dry == again[name].dry


def test_what_is_said_of_a_time_to_come_is_not_believed():
    """Who can write one run's status closes no pool for all the others."""
    for dry in ("9999-12-31T23:59:59Z", stamp(NOW + 7200)):
        assert not recall([status(attempt(dry=dry, started=None))], NOW)
    ahead = status(attempt(dry=stamp(NOW + 30), started=None))
    assert recall([ahead], NOW)["spot"].is_dry(NOW), "a clock may be ahead by a little"
