"""A trainer that is a few numbers answers as one that goes step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafinetune.simulate.training import Effort, Rhythm, Training


class Plain:
    """The same attempt, step by step: what is done and durable when, in whole tenths of a second."""

    def __init__(self, training: Training) -> None:
        effort, rhythm = training.effort, training.rhythm
        now = training.began
        self.done = [(now, training.from_step)]
        self.durable: list[tuple[float, int]] = []
        for step in range(training.from_step + 1, training.steps + 1):
            now += effort.step
            self.done.append((now, step))
            since = step - training.from_step - rhythm.first
            if step < training.steps and since >= 0 and since % rhythm.every == 0:
                now += effort.save
                self.durable.append((now + effort.upload, step))
        self.trained = now


@settings(max_examples=150, deadline=None)
@given(
    step=st.sampled_from([0.5, 1.0, 2.0]),
    save=st.sampled_from([0.0, 0.5, 3.0]),
    upload=st.sampled_from([0.0, 4.0, 7.5]),
    first=st.integers(1, 30),
    every=st.integers(1, 30),
    since=st.integers(0, 40),
    left=st.integers(0, 120),
    looks=st.lists(st.floats(0, 600), min_size=1, max_size=8),
)
def test_every_instant_is_as_step_by_step(
    step: float, save: float, upload: float, first: int, every: int, since: int, left: int, looks: list[float]
) -> None:
    training = Training(Effort(step, 30.0, save, upload, 5.0), Rhythm(first, every), 1000.0, since, since + left)
    plain = Plain(training)
    assert training.trained == pytest.approx(plain.trained)
    assert training.finished == pytest.approx(plain.trained + 5.0)
    for look in looks:
        now = 1000.0 + look + 0.013  # between what happens
        assert training.step(now) == max((one for at, one in plain.done if at <= now), default=since)
        assert training.durable(now) == max((one for at, one in plain.durable if at <= now), default=since)
        assert training.next_durable(now) == pytest.approx(
            min((at for at, _ in plain.durable if at > now), default=None)
        )


@given(end=st.floats(0, 500), upload=st.floats(0, 20))
def test_every_second_of_an_attempt_goes_somewhere(end: float, upload: float) -> None:
    training = Training(Effort(1.0, 30.0, 2.0, upload, 5.0), Rhythm(20, 50), 1000.0, 7, 307)
    now = min(1000.0 + end, training.finished)
    kept = 307 if now == training.finished else training.durable(now)
    spent = training.spent(now, now, kept)
    assert spent.total == pytest.approx(now - 1000.0)
    assert min(spent.starting, spent.training, spent.lost, spent.saving, spent.exporting) >= 0.0
    assert spent.training == pytest.approx(float(kept - 7))
