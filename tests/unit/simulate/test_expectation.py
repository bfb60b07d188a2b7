"""The dynamic program that the reserves come from, against all that can happen; and the table against the program."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from lorafinetune.engine.availability import ENDS_UP
from lorafinetune.engine.deadline_reserves import MINUTES, PRICES, RESTARTS, Question, reserve
from tests.bench.deadline.expectation import layers
from tests.bench.deadline.reserves import solved

ENDS = ((0.5, 0.1), (0.3, 0.2))
"""Chances per step that spot's absence ends, and that spot ends: in the first step, and later."""


def expected(restart: int, spot: float, on_demand: float, time: int, work: int) -> float:
    """The least expected cost from a first look that finds spot away, by trying every course and every end."""

    @cache
    def least(left: int, to_do: int, place: str, owed: int, there: int, age: int) -> float:
        if to_do == 0:
            return 0.0
        if left == 0:
            return 1e6
        costs = []
        for new, price in (("wait", 0.0), ("spot", spot), ("on-demand", on_demand)):
            if (new == "spot" and not there) or (new == "wait" and there):
                continue
            due = 0 if new == "wait" else owed if new == place else restart
            works = new != "wait" and due == 0
            cost = price
            for ends in (0, 1):
                chance = ENDS[there][age] if ends else 1 - ENDS[there][age]
                kept = "wait" if ends and new == "spot" else new
                after = (0, 0) if kept != new else (max(0, due - 1), 0)
                cost += chance * least(left - 1, to_do - works, kept, after[0], there ^ ends, 0 if ends else 1)
            costs.append(cost)
        return min(costs)

    return least(time, work, "wait", 0, 0, 0)


@pytest.mark.parametrize("restart", [1, 2])
@pytest.mark.parametrize("spot", [0.2, 0.7])
def test_the_program_finds_the_least_expected_cost(restart: int, spot: float) -> None:
    time, work = 9, 4
    made = layers(
        ends=np.array(ENDS),
        grows=np.array([1.0, 0.0]),
        restart=restart,
        spot=spot,
        on_demand=1.0,
        work=work,
        time=time,
    )
    for left, layer in enumerate(made, start=1):
        for to_do in range(1, work + 1):
            if left >= to_do + restart:
                least = min(layer.wait[0, 0, to_do], layer.start_on_demand[0, 0, to_do])
                assert least == pytest.approx(expected(restart, spot, 1.0, left, to_do)), (left, to_do)


def test_the_table_is_what_the_program_makes() -> None:
    found = solved(RESTARTS[-1], PRICES[1], [1.0, 4.0], 8.0, 600.0)
    for question, place in itertools.product(Question, (0, 1)):
        index = list(Question).index(question)
        table = [row[place + 1] for row in MINUTES[question][-1][1]]
        want = [round(60 * hours) if hours < 100 else 6000 for hours in found[index, :, place]]
        assert table == want, question


def test_between_the_marks_of_the_table_is_between_their_reserves() -> None:
    for question in Question:
        for age in range(len(ENDS_UP)):
            low = reserve(question, age, restart=400.0, price=0.3, work=4 * 3600.0)
            high = reserve(question, age, restart=900.0, price=0.3, work=4 * 3600.0)
            between = reserve(question, age, restart=600.0, price=0.3, work=4 * 3600.0)
            assert min(low, high) <= between <= max(low, high)
            assert reserve(question, age, restart=0.0, price=0.01, work=0.0) == pytest.approx(
                60.0 * MINUTES[question][0][0][age][0]
            )
            assert reserve(question, age, restart=1e9, price=0.999, work=1e9) == pytest.approx(
                60.0 * MINUTES[question][-1][-1][age][-1]
            )
