"""What can happen to a generation at one of its requests, by its name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from lorafinetune.contract import layout
from tests.integration.trainer.faults import Kind
from tests.integration.trainer.generations import Generation, Run

Interference = Callable[[Run, Generation], Kind | None]
"""What happens at the chosen request: a kind of fault, or None where it goes on."""


def _kill(run: Run, after: bool) -> Kind:
    run.way.dead = True
    return Kind.LOSE_ANSWER if after else Kind.DROP


INTERFERENCES: dict[str, Interference] = {
    "killed before the request": lambda run, _: _kill(run, after=False),
    "killed after the request": lambda run, _: _kill(run, after=True),
    "error before": lambda *_: Kind.REFUSE,
    "error after": lambda *_: Kind.ERROR_AFTER,
    "answer lost": lambda *_: Kind.LOSE_ANSWER,
    "connection dropped": lambda *_: Kind.DROP,
    "short read": lambda *_: Kind.BREAK_OFF,
    "answer damaged": lambda *_: Kind.GARBLE,
    "SIGTERM": lambda _, generation: generation.notice(),
    "a rival claims": lambda run, _: run.rival(commits=False),
    "a rival commits": lambda run, _: run.rival(commits=True),
    "tombstone": lambda run, _: run.bury(),
    "head deleted": lambda run, _: run.lose_head(),
}


def at_request(run: Run, generation: Generation, place: int, what: Interference, times: int = 1) -> Callable[..., Any]:
    """Return what the proxy asks: *what* happens at the request number *place* (0, 1 ...), and at the next ones."""
    numbers = itertools.count()

    def interfere(method: str, path: str) -> Kind | None:
        if not place <= next(numbers) < place + times:
            return None
        kind = what(run, generation)
        if kind is Kind.GARBLE and (method != "GET" or layout.CHECKPOINTS not in path):
            return None  # of the head no hash is known
        return kind

    return interfere
