"""Why an attempt ended, replayed: each ending that is known from the field, by its raw facts, in every order.

The promise: an out-of-memory or a user's error is never booked as a preemption, nor the reverse.
"""

from __future__ import annotations

import random

import pytest

from lorafinetune.engine.attempts import settle
from lorafinetune.engine.corrections import strength
from lorafinetune.engine.ending import PREEMPTIONS, Cause
from lorafinetune.engine.rules import decide
from tests.unit.engine.endings import END, Case, Scene, cases

ALL = list(cases())
PATIENT = 115.0
"""Seconds after the end within which all facts are in."""
USERS = {Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.INVALID}
ORDERINGS = 10_000


def test_there_are_enough_cases_and_each_has_its_source() -> None:
    assert len(ALL) >= 60
    assert all(case.body["source"] for case in ALL)
    assert len({case.name for case in ALL}) == len(ALL)


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_ending(case: Case) -> None:
    scene = Scene(case)
    facts = list(case.facts)
    for moment in sorted({-645.0, *(fact["at"] + 0.5 for fact in facts), 31.0, 62.0, PATIENT}):
        while facts and facts[0]["at"] <= moment:
            scene.learn(facts.pop(0))
        scene.status = decide(scene.observe(END + moment)).status
    check(case, scene)


def check(case: Case, scene: Scene) -> None:
    entry, status = scene.status.attempts[0], scene.status
    assert entry.cause == case.cause, entry
    assert entry.reason in case.reasons, entry
    assert entry.message
    assert (status.preemptions or 0) == (1 if entry.cause in PREEMPTIONS else 0)
    assert (status.failures or 0) == (1 if entry.cause == Cause.ERROR else 0)
    spent = {
        Cause.ERROR: "all" if entry.reason == "NaNLoss" else "error",
        Cause.OUT_OF_MEMORY: "all",
        Cause.INVALID: "all",
        Cause.INFRASTRUCTURE: "infrastructure",
    }
    assert spent.get(Cause(entry.cause), "nothing") == case.spends


def test_whatever_order_the_facts_come_in_the_record_is_the_same_in_the_end() -> None:
    chance = random.Random(20261123)
    for turn in range(ORDERINGS):
        case = ALL[turn % len(ALL)]
        story = shuffled(case, chance)
        try:
            replay(case, story)
        except AssertionError as error:
            told = "\n".join(f"  {moment:+.1f} {fact}" for moment, fact in story)
            raise AssertionError(f"turn {turn}, {case.name}: {error}\n{told}") from error


def shuffled(case: Case, chance: random.Random) -> list[tuple[float, dict]]:
    """Each fact at its time or late, some long, some twice, none before it is so; in the order of their arrival."""
    story = []
    for fact in case.facts:
        # What we ask of the API server ourselves is known before what comes of it.
        late = (
            0.0
            if case.body.get("suspended") and fact["at"] < 0
            else chance.choice((0.0, chance.uniform(0, 5), chance.uniform(0, 50)))
        )
        arrives = min(max(fact["at"], -60.0) + late, PATIENT - 12)
        story.append((arrives, fact))
        if chance.random() < 0.1 and "node" not in fact:
            story.append((min(arrives + chance.uniform(0, 20), PATIENT - 12), fact))
    return sorted(story, key=lambda one: one[0])


def replay(case: Case, story: list[tuple[float, dict]]) -> None:
    """Play it; a verdict of the wrong kind may only ever be a weaker one, which the sure one has corrected."""
    scene = Scene(case)
    books: list[tuple[str, str, int | None]] = []
    moments = [-645.0, *(moment for moment, _ in story), 31.0, PATIENT]
    for moment in sorted(moments):
        for _, fact in (one for one in story if one[0] == moment):
            scene.learn(fact)
        observed = scene.observe(END + moment)
        scene.status = (decide if "artifact" in case.facts[-1] else settle)(observed).status
        entry = scene.status.attempts[0]
        if entry.cause is not None:
            books.append((entry.cause, entry.reason or "", entry.exit_code))
    final = books[-1]
    assert final[0] == case.cause, books
    assert final[1] in case.reasons, books
    for cause, reason, code in books:
        of_another_kind = (cause in PREEMPTIONS and final[0] in USERS) or (cause in USERS and final[0] in PREEMPTIONS)
        assert not of_another_kind or strength(cause, reason, code) < strength(*final), books
    check(case, scene)
