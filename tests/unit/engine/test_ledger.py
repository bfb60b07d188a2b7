"""What a run cost, to the cent of a cent."""

# ruff: noqa: E501 - a table is read by its rows

import random
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafinetune.api.status import LoRAFineTuneStatus, Totals
from lorafinetune.contract.event import Saved, Termination
from lorafinetune.engine import ledger
from lorafinetune.engine.ledger import attempt_seconds, bill, fold_oldest, generating_cost
from lorafinetune.engine.observation import NodeSeen, StorageSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, READY, attempt, ended, pod, seen, status
from tests.unit.engine.test_lives import World


def hours(number: int, begin: float, end: float | None, price: str = "0.36", on_demand: str | None = "1.00"):
    return attempt(
        number,
        started=stamp(NOW + 3600 * begin),
        ended=None if end is None else stamp(NOW + 3600 * end),
        price_per_hour=price,
        on_demand_price_per_hour=on_demand,
    )


def test_seconds_times_price():
    status = LoRAFineTuneStatus(attempts=[hours(1, 0, 1), hours(2, 1, None)])
    account = bill(status, NOW + 1.5 * 3600)
    assert account.cost == Decimal("0.54")
    assert account.said("€") == {"cost": "€0.540", "on_demand_cost": "€1.500", "saved": "64%"}


def test_saved_is_silent_without_an_on_demand_price():
    assert bill(LoRAFineTuneStatus(attempts=[hours(1, 0, 1, on_demand=None)]), NOW).saved_text is None


def test_saved_compares_like_with_like_however_many_are_folded():
    """The first 20 attempts had no on-demand price beside theirs; those after them had."""
    past = [hours(number, number, number + 1, "0.35", None if number <= 20 else "1.00") for number in range(1, 46)]
    for many in (21, 30, 40, 45):
        whole = LoRAFineTuneStatus().model_copy(update={"attempts": past[:many]})
        for account in (bill(whole, NOW), bill(fold_oldest(whole, 20), NOW)):
            assert (account.saved_text, account.on_demand) == ("65%", Decimal(many - 20))


def test_totals_of_an_older_version_had_a_price_beside_all_of_their_cost():
    old = Totals(attempts=9, cost="3.5", on_demand_cost="10")
    assert bill(LoRAFineTuneStatus(totals=old), NOW).saved_text == "65%"


def test_an_attempt_that_never_started_costs_nothing():
    assert bill(LoRAFineTuneStatus(attempts=[attempt(1, started=None)]), NOW + 9999).cost == 0


def test_folding_old_attempts_changes_no_total():
    attempts = [hours(number, number, number + 0.37) for number in range(1, 30)]
    status = LoRAFineTuneStatus().model_copy(update={"attempts": attempts})
    folded = fold_oldest(status, 20)
    assert len(folded.attempts) == 20
    assert folded.totals is not None
    assert folded.totals.attempts == 9
    before, after = bill(status, NOW), bill(folded, NOW)
    assert abs(before.cost - after.cost) < Decimal("0.00001")
    assert before.saved_text == after.saved_text


def test_class_images_have_a_cost_that_outlives_the_list():
    made = [hours(number, number, number + 1) for number in range(1, 24)]
    made[0] = made[0].model_copy(
        update={"generating_since": stamp(NOW + 3600), "generating_until": stamp(NOW + 3600 + 1800)}
    )
    made[-1] = made[-1].model_copy(update={"generating_since": stamp(NOW + 23 * 3600)})
    whole = LoRAFineTuneStatus().model_copy(update={"attempts": made})
    later = NOW + 24 * 3600
    assert generating_cost(whole, later) == "$0.540"
    assert generating_cost(fold_oldest(whole, 20), later) == "$0.540"


def test_without_class_images_their_cost_is_not_spoken_of():
    assert generating_cost(LoRAFineTuneStatus(attempts=[hours(1, 0, 1)]), NOW) is None


def at(seconds: float) -> str:
    return stamp(NOW + seconds)


HELD: list[tuple[str, dict[str, Any], float]] = [
    # name, what is known of the attempt, seconds that are paid when 100 s have passed
    ("never had a node", {"started": None}, 0),
    ("waits for its image on a node that is paid", {"scheduled": at(40), "started": None}, 60),
    ("runs", {"scheduled": at(10), "started": at(30)}, 90),
    ("ended", {"scheduled": at(10), "started": at(30), "ended": at(70)}, 60),
    ("ended in the second in which it began", {"scheduled": at(10), "started": at(10), "ended": at(10)}, 0),
    ("a node whose clock is behind by an hour", {"scheduled": at(10), "started": at(30 - 3600), "ended": at(70 - 3600)}, 40),
    ("a node whose clock is ahead, alive", {"scheduled": at(10), "started": at(30 + 3600)}, 90),
    ("an end before all that is known", {"scheduled": at(10), "started": None, "ended": at(-500)}, 0),
    ("from another version of us, which did not know when it was bound", {"started": at(30)}, 70),
]  # fmt: skip


@pytest.mark.parametrize(("known", "seconds"), [one[1:] for one in HELD], ids=[one[0] for one in HELD])
def test_what_is_paid(known, seconds):
    assert attempt_seconds(attempt(1, **known), NOW + 100) == seconds


LOST: list[tuple[str, dict[str, Any], float | None, int]] = [
    # name, what is known of an attempt of 600 s, of which it started for 160, seconds of a step, those that came to nothing
    ("its artifact counts", {"cause": "Finished", "to_step": 500}, 2.0, 0),
    ("ten steps after its checkpoint", {"cause": "Preempted", "from_step": 100, "to_step": 320, "durable_step": 310}, 2.0, 20),
    ("saved within the notice", {"cause": "Preempted", "from_step": 100, "to_step": 320, "durable_step": 320}, 2.0, 0),
    ("and silent for a minute before it was given up", {"cause": "NodeLost", "from_step": 100, "to_step": 290, "durable_step": 280}, 2.0, 80),
    ("nothing committed: all of it", {"cause": "Preempted", "from_step": 100, "to_step": 310}, 2.0, 600),
    ("not even resumed", {"cause": "NodeLost"}, None, 600),
    ("never more than it had", {"cause": "NodeLost", "from_step": 0, "to_step": 5000, "durable_step": 50}, 2.0, 340),
    ("nor less than nothing", {"cause": "NodeLost", "from_step": 0, "to_step": 5000, "durable_step": 5000}, 2.0, 0),
    ("nor more than it had where a clock went back and steps took less than nothing", {"cause": "NodeLost", "from_step": 0, "to_step": 80, "durable_step": 60}, -1e6, 440),
    ("nobody saw how long a step takes: by their number", {"cause": "NodeLost", "from_step": 0, "to_step": 80, "durable_step": 60}, None, 110),
]  # fmt: skip


@pytest.mark.parametrize(("known", "pace", "seconds"), [one[1:] for one in LOST], ids=[one[0] for one in LOST])
def test_what_came_to_nothing(known, pace, seconds):
    one = attempt(1, started=at(0), ended=at(600), start_seconds=160, price_per_hour="0.36", **known)
    one = ledger.accounted(one, pace)
    assert (one.lost_seconds, one.cost) == (seconds, "0.06")


def test_lost_seconds_are_told_by_cause_over_folded_attempts_too():
    def one(number: int, cause: str) -> Any:
        return ledger.accounted(hours(number, number, number + 1).model_copy(update={"cause": cause}), None)

    attempts = [one(number, "Preempted" if number % 3 else "Infrastructure") for number in range(1, 30)]
    attempts.append(one(30, "Finished"))
    whole = LoRAFineTuneStatus().model_copy(update={"attempts": attempts})
    folded = fold_oldest(whole, 20)
    assert len(folded.attempts) == 20
    for found in (ledger.lost(whole), ledger.lost(folded)):
        by = {entry.cause: entry for entry in found}
        assert set(by) == {"Preempted", "Infrastructure"}
        assert (by["Preempted"].attempts, by["Preempted"].seconds, by["Preempted"].cost) == (20, 72000, "7.2")
        assert (by["Infrastructure"].attempts, by["Infrastructure"].seconds) == (9, 32400)
    assert ledger.counted(folded)["preemptions"] == 20


@dataclass(frozen=True)
class Lived:
    """One attempt, in whole seconds: what each of them went into is known from how it was made."""

    waited: bool
    """It never had a node."""
    start: int
    kept: int
    """Steps that count, of 3 s."""
    redone: int
    """Steps after its newest checkpoint."""
    silent: int
    """Seconds before its end in which it did nothing."""
    cause: str


LIVED = st.builds(
    Lived,
    waited=st.booleans(),
    start=st.integers(0, 300),
    kept=st.integers(0, 500),
    redone=st.integers(0, 50),
    silent=st.integers(0, 60),
    cause=st.sampled_from(["Preempted", "NodeLost", "Infrastructure", "Moved", "Suspended", "Error"]),
)
PACE = 3


@settings(deadline=None, max_examples=200)
@given(lives=st.lists(LIVED, max_size=40), exported=st.integers(0, 60), folds=st.sets(st.integers(0, 40)))
def test_each_second_that_was_paid_was_of_use_or_lost_by_a_cause(lives, exported, folds):
    """Exactly: over any life, with attempts folded away whenever it may be."""
    known, now, step, useful, lost, taker = status(), NOW, 0, 0, Counter[str](), ""
    lives = [*lives, Lived(False, 40, 100, 0, exported, "Finished")]
    for number, one in enumerate(lives, 1):
        entry = attempt(number, pool="a", started=None, created=stamp(now), cause=one.cause)
        if one.waited:
            entry = entry.model_copy(update={"cause": "NoCapacity"})
        else:
            done = (one.kept + one.redone) * PACE
            held = one.start + done + one.silent
            reached = {"from_step": step, "durable_step": step + one.kept, "to_step": step + one.kept + one.redone}
            ran = {"started": stamp(now), "ended": stamp(now + held), "start_seconds": one.start, "message": "x"}
            entry = entry.model_copy(update=reached | ran)
            if one.cause == "Finished":
                useful += done + one.silent
            elif one.kept:
                useful += one.kept * PACE
                lost[one.cause] += one.redone * PACE + one.silent
            else:
                lost[one.cause] += held
            if (one.kept or one.cause == "Finished") and step:
                lost[taker] += one.start
            elif one.kept:
                useful += one.start
            now, step, taker = now + held, step + one.kept, one.cause
        entry = ledger.accounted(entry, float(PACE))
        known = known.model_copy(update={"attempts": [*known.attempts, entry]})
        if number in folds:
            known = fold_oldest(known, 1)
    assert sum(attempt_seconds(one, now) for one in known.attempts) <= now - NOW
    assert {one.cause: one.seconds for one in ledger.lost(known) if one.seconds} == {k: v for k, v in lost.items() if v}
    assert useful + sum(one.seconds for one in ledger.lost(known)) == now - NOW, "paid is useful and lost"
    charged = sum(float(one.cost) for one in ledger.lost(known)) * 3600 / 0.348
    assert charged == pytest.approx(sum(lost.values()), abs=0.5)


def test_a_corrected_cause_moves_what_was_counted():
    first = decide(seen(status=status(attempt()), pods=(ended(disruption="EvictionByEvictionAPI"),))).status
    assert (first.preemptions, first.failures, [one.cause for one in first.lost]) == (1, 0, ["Preempted"])
    corrected = first.attempts[0].model_copy(update={"cause": "Error"})
    late = first.model_copy(update={"attempts": [corrected]})
    after = decide(seen(status=late, pods=(ended(),))).status
    assert (after.preemptions, after.failures, [one.cause for one in after.lost]) == (0, 1, ["Error"])


def test_a_checkpoint_that_is_heard_of_late_was_not_lost():
    made = Progress(1, sequence=3, step=40, resumed_from=0, seconds_per_step=2.0, heard=NOW - 5)
    pods = (ended(disruption="EvictionByEvictionAPI", started=NOW - 91, ended=NOW - 1),)
    first = decide(seen(status=status(attempt()), pods=pods, progress=made)).status
    assert first.attempts[0].lost_seconds == 90
    head = replace(READY, newest=World().entry(1, 30), read=NOW)
    told = decide(seen(status=first, pods=pods, storage=head, progress=made)).status
    assert (told.attempts[0].durable_step, told.attempts[0].lost_seconds) == (30, 22)
    second = attempt(2, from_step=30)
    known = first.model_copy(update={"attempts": [first.attempts[0], second]})
    successor = decide(seen(status=known, pods=(*pods, pod(2)), storage=StorageSeen(), progress=None)).status
    assert successor.attempts[0].durable_step == 30, "what its successor resumed from was durable"


@pytest.mark.parametrize("seed", range(8))
def test_a_life_of_twenty_preemptions_and_five_crashes_costs_what_its_pods_held(seed: int):
    """The truth is added up from the pods; the operator sees what it sees, late, and forgets all five times."""
    chance, world, truth = random.Random(seed), World(), 0.0
    world.nodes["node-1"] = NodeSeen("node-1", ready=True)
    crashes = set(chance.sample(range(20), 5))
    for number in range(20):
        for _ in range(8):
            world.now += chance.uniform(0, 4)
            world.operate()
        (waiting,) = (one for one in world.pods.values() if not one.is_over)
        bound = world.now = world.now + chance.uniform(0, 90)
        started = bound + chance.uniform(0, 30)
        world.pods[waiting.attempt] = replace(
            waiting, node="node-1", phase="Running", bound=float(int(bound)), started=float(int(started))
        )
        for _ in range(chance.randrange(1, 12)):
            world.now += chance.uniform(5, 60)
            world.operate()
        if number in crashes:  # and the operator is away while the pod ends
            world.operate(crash_after=0)
            world.now += chance.uniform(0, 600)
        truth += (world.now - bound) * float(waiting.price_per_hour) / 3600
        words = Termination(exit_code=75, step=number + 1, durable_step=number + 1, saved=Saved.NEW)
        gone = world.pods[waiting.attempt]
        world.end(gone, 75, deleting=True, disruption="EvictionByEvictionAPI", termination=words)
        world.now += chance.uniform(0, 300)
    for _ in range(4):
        world.operate()
    account = bill(world.status, world.now)
    assert world.status.preemptions == 20
    assert float(account.cost) == pytest.approx(truth, rel=0.02)
    assert sum(one.attempts for one in world.status.lost) == 20
