"""What the operator does in the model: the order of `storage/collect.py` and `storage/rebuild.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import CheckpointEntry, Head
from tests.unit.protocol.state import ENDED, HASH, RUN, UNHEARD, Broken, Heads, Rules, State, complete


@dataclass
class Operator:
    """Makes a lost head anew and, where it *deletes*, ends the run."""

    deletes: bool
    rules: Rules
    heads: Heads

    def steps_of(self, state: State) -> Iterator[tuple[str, State]]:
        """Yield what it may do next: in words, and what there is afterwards."""
        names = frozenset(name for name, _ in state.folders)
        top = max((one.number for one in state.attempts if one.at != "mark"), default=0)
        quiet = all(one.at in (*ENDED, "mark") for one in state.attempts)
        match state.operator:
            case "idle" | "away":
                if self.deletes and state.operator == "idle":
                    following = "bury" if self.rules.bury_first else "list"
                    yield "the operator begins to delete", state._replace(operator=following)
                lost = state.head is None and top > 0 and state.marked
                if lost and quiet and any(one.at == "mark" for one in state.attempts):
                    found = complete(state)
                    yield "the operator lists manifests", state._replace(operator="rebuild", listed=found)
            case "rebuild":
                entries = sorted(
                    (int(step), int(attempt))
                    for attempt, _, step in (
                        name.split("/")[1].partition("-")
                        for name in state.listed
                        if name.startswith(layout.CHECKPOINTS)
                    )
                )
                newest = list(dict(entries).items())  # of each step that of the highest attempt
                made = Head(
                    run_uid=RUN,
                    attempt=top,
                    checkpoints=[
                        CheckpointEntry(attempt=attempt, step=step, manifest_sha256=HASH)
                        for step, attempt in newest[-2:]
                    ],
                )
                after = state._replace(operator="idle" if self.deletes else "away", listed=frozenset())
                if state.head is None:
                    durable = tuple(sorted({step for step, _ in entries})[-2:])
                    after = after._replace(head=self.heads.key(made), fence=top, durable=durable, forgotten=frozenset())
                yield "the operator makes the head anew", after
            case "bury":
                head = heads.bury(self.heads.of(state.head), run_uid=RUN, attempt=top)
                if not head.tombstone or head.checkpoints:
                    raise Broken("a buried head is none")
                yield "the operator buries", state._replace(head=self.heads.key(head), buried=True, operator="list")
            case "list":
                yield "the operator lists", state._replace(operator="clear", listed=names)
            case "clear":
                kept = frozenset(pair for pair in state.folders if pair[0] not in state.listed)
                following = "wait" if self.rules.bury_first or state.buried else "late bury"
                yield "the operator clears", state._replace(folders=kept, operator=following, listed=frozenset())
            case "late bury":
                head = heads.bury(self.heads.of(state.head), run_uid=RUN, attempt=top)
                yield "the operator buries", state._replace(head=self.heads.key(head), buried=True, operator="wait")
            case "wait":
                # A lost node may hold a pod that has begun and not claimed yet: it is not waited for for ever.
                if all(one.at in (*ENDED, *UNHEARD) for one in state.attempts):
                    following = "list again" if self.rules.list_twice else "first"
                    yield "every attempt has ended or was never heard", state._replace(operator=following)
            case "list again":
                yield "the operator lists again", state._replace(operator="clear again", listed=names)
            case "clear again":
                kept = frozenset(pair for pair in state.folders if pair[0] not in state.listed)
                yield "the operator clears again", state._replace(folders=kept, operator="first", listed=frozenset())
            case "first":
                changed = state._replace(marked=False) if self.rules.mark_goes_first else state._replace(head=None)
                yield "the operator deletes the first of mark and tombstone", changed._replace(operator="last")
            case "last":
                changed = state._replace(head=None) if self.rules.mark_goes_first else state._replace(marked=False)
                yield "the operator deletes the last of mark and tombstone", changed._replace(operator="gone")
