"""The storage protocol as a small explicit model: head, attempts, operator and answers that get lost.

Every order of their steps is tried, breadth first, so that what is found is a shortest story. The head is changed by
the real transitions of `lorafinetune.contract.head`; what is modelled is the order in which the real code does things
(`saving/checkpoints.py`, `storage/collect.py`, `storage/rebuild.py`) and what can come between.

One step is one request. A swap is one step, not a read and a write: one whose condition fails changes nothing and is
asked anew on what is read then, which is the same as having been asked later. What matters is kept: a swap may take
effect and its answer be lost, so that it is asked again after whatever happened since. An attempt that dies is one
that takes no further step, so every story is also that of a kill after each of its steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.unit.protocol.operator import Operator
from tests.unit.protocol.state import ENDED, Attempt, Broken, Heads, Rules, State, complete
from tests.unit.protocol.trainer import Trainer


@dataclass
class Search:
    """Tries everything that *attempts* attempts of *steps* steps, a deletion and *losses* losses can do."""

    attempts: int = 2
    steps: int = 2
    losses: int = 1
    deletes: bool = True
    rules: Rules = field(default_factory=Rules)
    heads: Heads = field(default_factory=Heads)

    def __post_init__(self) -> None:
        self._trainer = Trainer(self.steps, self.rules, self.heads)
        self._operator = Operator(self.deletes, self.rules, self.heads)

    def run(self, limit: int = 2_000_000) -> int:
        """Visit every state that can be reached; return how many there are. Raises Broken with the story."""
        first = State(
            head=None,
            marked=True,
            folders=frozenset(),
            attempts=tuple(Attempt(number + 1) for number in range(self.attempts)),
            operator="idle" if self.deletes else "away",
            listed=frozenset(),
            losses=self.losses,
            fence=0,
            buried=False,
            durable=(),
            forgotten=frozenset(),
        )
        before: dict[State, tuple[State, str] | None] = {first: None}
        waiting = deque([first])
        while waiting:
            state = waiting.popleft()
            try:
                for said, following in self._next(state):
                    if following not in before:
                        before[following] = (state, said)
                        self._check(following)
                        waiting.append(following)
            except Broken as broken:
                raise Broken(f"{broken}, after: {'; '.join(_story(before, next(reversed(before))))}") from None
            assert len(before) <= limit, "the model is too large to be searched"
        return len(before)

    # What must hold

    def _check(self, state: State) -> None:
        head = self.heads.of(state.head)
        whole = complete(state)
        if head is not None:
            named = [entry.folder for entry in head.checkpoints]
            if head.artifact is not None and not state.buried:
                named.append(head.artifact.folder)
            if missing := [name for name in named if name not in whole]:
                raise Broken(f"the head names {missing[0]}, which is not there")
            if set(named) & set(head.garbage):
                raise Broken("the head names what it calls garbage")
            steps = [entry.step for entry in head.checkpoints]
            if steps != sorted(set(steps)):
                raise Broken(f"the checkpoints stand in the order {steps}")
            if not state.buried and (lost := set(state.durable) - set(steps)):
                raise Broken(f"step {max(lost)} was one of the newest two, and is not durable any more")
        if state.operator == "gone" and all(one.at in (*ENDED, "mark") for one in state.attempts):
            left = [name for name, _ in state.folders]
            if left or state.head is not None or state.marked:
                raise Broken(f"left after the deletion: {left or 'head or mark'}")

    # What can happen next

    def _next(self, state: State) -> Iterator[tuple[str, State]]:
        for place, one in enumerate(state.attempts):
            if one.at in ENDED:
                continue
            for said, changed, following in self._trainer.steps_of(state, one):
                attempts = (*state.attempts[:place], following, *state.attempts[place + 1 :])
                yield f"attempt {one.number} {said}", changed._replace(attempts=attempts)
            if state.operator == "wait":
                dead = (*state.attempts[:place], one._replace(at="dead"), *state.attempts[place + 1 :])
                yield f"attempt {one.number} is killed", state._replace(attempts=dead)
        yield from self._operator.steps_of(state)
        head = self.heads.of(state.head)
        if state.losses and head is not None and not state.buried and state.operator in ("idle", "away"):
            forgotten = frozenset(entry.folder for entry in head.checkpoints)
            lost = state._replace(head=None, losses=state.losses - 1, durable=(), forgotten=forgotten)
            yield "somebody deletes the head", lost


def _story(before: dict[State, tuple[State, str] | None], last: State) -> list[str]:
    words: list[str] = []
    while (link := before[last]) is not None:
        last, said = link
        words.append(said)
    return words[::-1]
