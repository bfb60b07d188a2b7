"""After which steps the trainer makes checkpoints: what one costs is measured, in a training whose time is made up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from lorafinetune.contract import cadence
from lorafinetune.contract.runconfig import Checkpointing
from lorafinetune_trainer.saving.cadence import Cadence


@dataclass
class Course:
    """A training: each step takes *step* seconds, a save holds it up and slows the steps after it down."""

    step: float = 1.0
    held: float = 0.1
    slower: float = 0.3
    """Seconds by which each step beside a save takes longer."""
    beside: int = 2
    """Steps that a save takes."""
    first: float = 30.0
    """Seconds that the first step takes longer: imports, compilers, caches."""
    now: float = 0.0
    saved: list[int] = field(default_factory=list)
    every: list[int] = field(default_factory=list)

    def run(self, steps: int, *, begin: int = 0, **settings: float) -> Cadence:
        found = Cadence(Checkpointing.model_validate(settings), step=begin, clock=lambda: self.now)
        left = 0
        for number in range(begin + 1, begin + steps + 1):
            seconds = self.step + (self.slower if left else 0.0) + (self.first if number == begin + 1 else 0.0)
            left = max(0, left - 1)
            self.now += seconds
            due = found.due(number, seconds, busy=left > 0)
            self.every.append(found.every_steps)
            if due:
                found.take(number, self.hold)
                self.saved.append(number)
                left = self.beside
        return found

    def hold(self) -> None:
        self.now += self.held


def test_what_the_user_says_is_what_is_done() -> None:
    course = Course()
    found = course.run(100, begin=7, everySteps=20)
    assert course.saved == [20, 40, 60, 80, 100]
    assert found.every_steps == 20
    assert found.save_seconds == pytest.approx(0.7), "it is measured all the same"


def test_the_cost_is_what_a_save_holds_up_and_slows_down() -> None:
    course = Course()
    found = course.run(600)
    assert found.save_seconds == pytest.approx(0.1 + 2 * 0.3)
    wanted = cadence.interval(0.7)
    assert found.every_steps == round(wanted)
    assert [after - before for before, after in zip(course.saved[1:], course.saved[2:], strict=False)] == [
        round(wanted)
    ] * (len(course.saved) - 2)


def test_the_first_comes_soon_and_is_measured() -> None:
    course = Course()
    course.run(200)
    assert course.saved[0] == round(cadence.interval(None)) <= cadence.FIRST, "its long first step does not count"
    assert course.saved[1] - course.saved[0] == round(cadence.interval(0.7))


@pytest.mark.parametrize(
    ("course", "settings", "want"),
    [
        pytest.param(Course(), {"lifetimeSeconds": 900}, 35, id="nodes that do not last"),
        pytest.param(Course(), {"lifetimeSeconds": 36_000}, 224, id="nodes that last"),
        pytest.param(Course(slower=0.0), {}, 30, id="a save that costs next to nothing"),
        pytest.param(Course(step=100.0, beside=1), {}, 1, id="steps longer than the interval"),
        pytest.param(Course(beside=90, slower=0.0), {}, 90, id="a slow link"),
        pytest.param(Course(held=600.0), {}, 600, id="a save that costs minutes"),
        pytest.param(Course(step=0.01), {}, 7100, id="quick steps"),
    ],
)
def test_intervals(course: Course, settings: dict[str, float], want: int) -> None:
    found = course.run(1000 if want < 1000 else 60_000, **settings)
    assert found.every_steps == pytest.approx(want, rel=0.03)
    gaps = [after - before for before, after in zip(course.saved, course.saved[1:], strict=False)]
    assert gaps
    assert gaps[-1] == pytest.approx(want, rel=0.03)


def test_steps_that_are_slow_by_themselves_are_none_of_the_saves_doing() -> None:
    """One in ten takes three times as long: a picture of another shape."""
    found = Cadence(Checkpointing(), step=0, clock=lambda: 0.0)
    for number in range(1, 2000):
        seconds = 3.0 if number % 10 == 0 else 1.0
        if found.due(number, seconds, busy=number - found._last < 20 and found._saving):
            found.take(number, lambda: None)
    assert found.save_seconds is not None
    assert found.save_seconds < 1.0


def test_a_pause_of_the_machine_counts_little() -> None:
    course = Course()
    found = course.run(400)
    found.take(400, course.hold)
    found.due(401, 300.0, busy=False)
    assert found.save_seconds == pytest.approx(0.7)


def test_nothing_is_made_while_one_is_being_saved() -> None:
    found = Cadence(Checkpointing(), step=0)
    for number in range(1, 500):
        due = found.due(number, 1.0, busy=bool(found._last))
        assert due == (number == round(cadence.interval(None)))
        if due:
            found.take(number, lambda: None)
