"""``python -m tests.bench.deadline.reserves``: makes engine/deadline_reserves.py anew.

From the rates of availability.py. Takes some minutes. Run it after a change of the rates, or of the grid.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from textwrap import wrap

import numpy as np

from lorafinetune.engine import deadline_reserves
from lorafinetune.engine.availability import AGES, ENDS_DOWN, ENDS_UP
from lorafinetune.engine.deadline_reserves import NEVER, PRICES, RESTARTS, WORKS, Question
from tests.bench.deadline.expectation import Costs, Layer, layers

SPANS = ((4.0, 8.0, 60.0, 6), (16.0, 20.0, 90.0, 4), (64.0, 40.0, 180.0, 2))
"""Work up to these hours is solved with so many hours of slack, in steps of these seconds, or of that part of a restart
where it is more."""


def main() -> None:
    """Write the table into the module, in place of the one that is there."""
    path = Path(deadline_reserves.__file__)
    head, mark, _ = path.read_text(encoding="utf-8").partition("# Made by tests/bench/deadline/reserves.py\n")
    lines = ["# fmt: off", "MINUTES: Final[dict[Question, Table]] = {"]
    made = {(restart, price): reserves(restart, price) for restart in RESTARTS for price in PRICES}
    for index, question in enumerate(Question):
        lines.append(f"    Question.{question.name}: (")
        for restart in RESTARTS:
            lines.append("        (")
            for price in PRICES:
                rows = ", ".join(f"({','.join(map(str, row))})" for row in made[restart, price][index].tolist())
                indent = " " * 12
                lines.extend(wrap(f"({rows}),", 110, initial_indent=indent, subsequent_indent=indent + " "))
            lines.append("        ),")
        lines.append("    ),")
    path.write_text(head + mark + "\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def reserves(restart: float, price: float) -> np.ndarray:
    """Return the reserves in minutes, [question, age class, work], for a *restart* of seconds and a *price*."""
    parts, below = [], 0.0
    for work, slack, least, part in SPANS:
        step = restart / max(1, round(restart / max(least, restart / part)))
        parts.append(solved(restart, price, [hours for hours in WORKS if below < hours <= work], slack, step))
        below = work
    minutes = np.concatenate(parts, axis=-1) * 60
    return np.where(minutes < NEVER, np.round(minutes), NEVER).astype(int)


def solved(restart: float, price: float, works: list[float], slack: float, step: float) -> Costs:
    """Return the reserves in hours, [question, age class, work], looking up to *slack* hours of slack, in *step* s."""
    hours, steps = step / 3600, max(1, round(restart / step))
    ends = 1 - np.exp(-np.array([ENDS_DOWN, ENDS_UP]) * hours)
    widths = np.array([AGES[0], *(b - a for a, b in pairwise(AGES))])
    grows = np.append(np.minimum(1.0, hours / widths), 0.0)
    cells = np.array([round(work / hours) for work in works])
    most, top = round(slack / hours), int(cells.max())
    refused = np.full((len(Question), len(ENDS_UP), len(works)), -1)
    going = layers(
        ends=ends, grows=grows, restart=steps, spot=price * hours, on_demand=hours, work=top, time=top + most
    )
    for left, layer in enumerate(going, start=1):
        here = np.flatnonzero(left >= cells)
        for index, question in enumerate(Question):
            yes = gains(question, layer)[:, cells[here]]
            refused[index][:, here] = np.where(yes, refused[index][:, here], left - cells[here])
    needed = np.array([steps + (question in {Question.WAIT, Question.PAUSE}) for question in Question])
    least = refused + 1 - steps - needed[:, None, None]
    found = np.where(least <= 0, 0.0, (least - 0.5) * hours)
    return np.where(refused >= top + most - cells, np.inf, found)


def gains(question: Question, layer: Layer) -> np.ndarray:
    """Return where the answer is yes, [age class, work]."""
    match question:
        case Question.WAIT:
            return layer.wait[0] < layer.start_on_demand[0]
        case Question.PAUSE:
            return layer.wait[0] < layer.stay_on_demand[0, 0]
        case Question.RETURN:
            return layer.start_spot < layer.stay_on_demand[0, 1]
        case Question.TAKE:
            return layer.start_spot <= layer.start_on_demand[1]


if __name__ == "__main__":
    main()
