"""When a run will be done: told after a tenth of its steps, against what then came to pass."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import pytest

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus, TimeStatus
from lorafinetune.contract.event import Event, EventType, Phase
from lorafinetune.engine import eta, ledger
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.progress import Progress, fold
from lorafinetune.engine.times import exact, stamp
from tests.unit.engine.given import NOW, attempt, pod, seen, spec, status

PLAIN = Event(type=EventType.PROGRESS, run_uid="u", attempt=1, sequence=1, step=0, seconds_per_step=2.0)


@dataclass
class Life:
    """A run as its trainer tells of it, in virtual time; ask it at any moment when it will be done."""

    steps: int
    pace: float
    chance: random.Random
    pictures: int = 0
    """Prompts of a row."""
    every: int = 100
    save: float = 1.0
    wobble: float = 0.1
    start: float = 60.0
    lifetime: float | None = None
    """Mean seconds between two preemptions; None = undisturbed."""
    now: float = NOW

    def __post_init__(self) -> None:
        training = {"steps": self.steps, "gradientAccumulation": 4}
        validation = {"prompts": ["a"] * self.pictures, "everySteps": self.every, "inferenceSteps": 25}
        self.spec = spec(training=training, **({"validation": validation} if self.pictures else {}))
        # A step is 12 passes, a row of one prompt 50: the engine's guess is right on average, and no more than that.
        self.row = self.pictures * self.pace * 50 / 12 * self.chance.uniform(0.8, 1.25)
        self.attempts: list[AttemptStatus] = []
        self.trained = 0.0

    def look(self, progress: Progress | None) -> float | None:
        times = [TimeStatus(activity="Training", seconds=int(self.trained))]
        given: LoRAFineTuneStatus = status(*self.attempts[-20:], times=times, seconds_per_step=f"{self.pace:.3g}")
        given = given.model_copy(update=ledger.counted(given))
        observed: Observation = seen(spec=self.spec, status=given, pods=(pod(),), progress=progress, now=self.now)
        return eta.remaining(observed, given)

    def live(self) -> tuple[float | None, float]:
        """Live it to its end; return what was said after a tenth of the steps, and how long it then took."""
        said, when, durable, number = None, 0.0, 0, 0
        while True:
            number += 1
            self.attempts.append(attempt(number, scheduled=stamp(self.now), started=stamp(self.now), from_step=durable))
            begun = self.now
            end = begun + self.chance.expovariate(1 / self.lifetime) if self.lifetime else float("inf")
            self.now += self.start
            self.attempts[-1] = self.attempts[-1].model_copy(update={"start_seconds": int(self.start)})
            progress, step, first = Progress(number), durable, durable
            while step < self.steps and self.now < end:
                spent = self.pace * self.chance.uniform(1 - self.wobble, 1 + self.wobble)
                step += 1
                spent += self.save if step % 50 == 0 else 0.0
                self.now, self.trained = self.now + spent, self.trained + spent
                progress = self.tell(progress, step, Phase.TRAINING)
                if self.pictures and (step % self.every == 0 or step == self.steps):
                    progress = self.tell(progress, step, Phase.VALIDATING)
                    self.now += self.row
                    self.trained += self.row
                durable = step - step % 50 if step - step % 50 > first else durable
                if said is None and step * 10 >= self.steps:
                    said, when = self.look(progress), self.now
            if step >= self.steps and self.now < end:
                return said, self.now + eta.PUBLISHING - when
            self.now = max(self.now, min(end, self.now))
            closed = {"cause": "Preempted", "ended": stamp(self.now), "to_step": step, "durable_step": durable}
            self.attempts[-1] = ledger.accounted(self.attempts[-1].model_copy(update=closed), self.pace)
            self.now += 20.0

    def tell(self, progress: Progress, step: int, phase: Phase) -> Progress:
        if step % 5 and phase is Phase.TRAINING:
            return progress  # as the trainer does, which tells of no two steps within a second
        told: dict[str, Any] = {"attempt": progress.attempt, "sequence": progress.sequence + 1, "step": step}
        return fold(progress, PLAIN.model_copy(update=told | {"phase": phase}), self.now)


@pytest.mark.parametrize("seed", range(24))
def test_an_undisturbed_run_is_foretold_within_a_tenth_after_a_tenth(seed: int) -> None:
    chance = random.Random(seed)
    life = Life(
        steps=chance.choice([300, 500, 1000, 3000]),
        pace=chance.uniform(0.4, 4),
        chance=chance,
        pictures=chance.choice([0, 0, 1, 4, 8]),
        every=chance.choice([50, 100, 250]),
        save=chance.uniform(0, 3),
    )
    said, took = life.live()
    assert said is not None
    assert abs(said - took) <= 0.1 * took, (said, took)


def test_a_disturbed_run_is_foretold_by_its_own_history() -> None:
    """With as many preemptions as make a run a third longer; one run's luck is its own, so the mean is looked at."""
    errors, blind = [], []
    for seed in range(40):
        chance = random.Random(seed)
        life = Life(steps=3000, pace=2.0, chance=chance, lifetime=300.0, start=40.0)
        said, took = life.live()
        if said is None:
            continue
        errors.append((said - took) / took)
        blind.append((3000 * 0.9 * 2.0 - took) / took)
    assert len(errors) >= 32
    assert abs(mean(errors)) <= 0.1, mean(errors)
    assert mean(abs(one) for one in errors) < mean(abs(one) for one in blind), "history is worth listening to"


def test_nothing_is_foretold_where_nobody_can_know() -> None:
    ready = Progress(1, step=50, phase=Phase.TRAINING, seconds_per_step=2.0, heard=NOW)
    known: dict[str, Any] = {"status": status(attempt()), "pods": (pod(),), "progress": ready}
    plain = seen(**known)
    assert eta.remaining(plain, plain.status) == 450 * 2.0 + eta.PUBLISHING
    for given in (
        replace(plain, status=status(attempt(cause="Preempted", ended=stamp(NOW)))),
        replace(plain, status=status()),
        replace(plain, spec=spec(training={})),
        replace(plain, progress=Progress(1, phase=Phase.CONDITIONING)),
    ):
        assert eta.remaining(given, given.status) is None


def test_an_attempt_that_resumes_reckons_with_its_own_start() -> None:
    first = attempt(1, cause="Preempted", scheduled=stamp(NOW - 900), start_seconds=60, ended=stamp(NOW - 120))
    second = attempt(2, scheduled=stamp(NOW - 20), started=stamp(NOW - 10), from_step=100)
    given = status(first, second, seconds_per_step="2")
    observed = seen(status=given, pods=(pod(2),), progress=Progress(2, step=100, phase=Phase.RESUMING))
    assert eta.remaining(observed, given) == 40 + 400 * 2.0 + eta.PUBLISHING


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0s"), (42.4, "42s"), (102, "1m42s"), (120, "2m"), (599, "9m59s"), (600, "10m"), (4000, "1h7m")],
)
def test_it_is_said_as_exactly_as_it_is_known(seconds: float, said: str) -> None:
    assert exact(seconds) == said


def test_a_clock_that_was_set_back_takes_no_eta_away():
    """The first attempt ended "later" than the second had its node: what an ending costs is then not known."""
    first = attempt(1, ended=stamp(NOW + 600), cause="Preempted", lost_seconds=0)
    second = attempt(2, scheduled=stamp(NOW - 50), started=stamp(NOW - 45), start_seconds=0)
    given = status(first, second, seconds_per_step="2")
    given = given.model_copy(update=ledger.counted(given))
    assert eta.remaining(seen(status=given, pods=(pod(2),)), given) == 500 * 2 + eta.PUBLISHING
