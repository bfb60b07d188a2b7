"""What an attempt does in the model, one request at a time: the order of `saving/checkpoints.py`.

The head is changed by the real transitions of `lorafinetune.contract.head`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorafinetune.contract import head as heads
from lorafinetune.contract import layout
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry, Fenced, Head, HeadLost
from tests.unit.protocol.state import HASH, RUN, Attempt, Broken, Heads, Rules, State, complete, pod

Step = tuple[str, State, Attempt]


@dataclass
class Trainer:
    """The program of every attempt, of *steps* steps."""

    steps: int
    rules: Rules
    heads: Heads

    def steps_of(self, state: State, one: Attempt) -> Iterator[Step]:
        """Yield what *one* may do next: in words, and what there is afterwards."""
        ended = one._replace(at="ended", view=None, doomed=frozenset())
        folder = layout.checkpoint(one.number, one.step + 1)
        match one.at:
            case "mark":
                found = one._replace(at="claim") if state.marked else ended
                yield "looks for the mark", state, found
            case "claim" | "anew":
                head = self.heads.of(state.head)
                try:
                    claimed = heads.claim(head, run_uid=RUN, attempt=one.number, pod_uid=pod(one.number))
                except Fenced:
                    yield "is refused the head", state, ended
                    return
                if head is not None and head.tombstone:
                    raise Broken(f"attempt {one.number} claimed a tombstone")
                if head is None and one.at == "claim" and self.rules.heads_are_missed:
                    yield "finds no head", state, one._replace(at="missing")
                    return
                if head is not None and one.at == "anew":
                    yield "cannot make a head where one is", state, one._replace(at="claim", losses=0)
                    return
                if one.number < state.fence and head is not None:
                    raise Broken(f"attempt {one.number} claimed after {state.fence}")
                looked = one.at == "claim" or one.losses == state.losses
                if head is None and looked and state.forgotten & complete(state):
                    raise Broken(f"attempt {one.number} begins anew over checkpoints")
                anew = one.made_anew or head is None
                fence = max(one.number, state.fence) if head is not None else one.number
                changed = state._replace(head=self.heads.key(claimed), fence=fence, forgotten=frozenset())
                told = one._replace(at="again", view=changed.head, made_anew=anew, losses=0)
                yield "claims", changed, told
                if state.losses:
                    lost = one._replace(at="claim", made_anew=anew, losses=0)
                    yield "claims, and is not told so", changed._replace(losses=state.losses - 1), lost
            case "missing":
                if not any(name.startswith(layout.CHECKPOINTS) for name, _ in state.folders):
                    yield "finds no checkpoints", state, one._replace(at="anew", losses=state.losses)
                elif self.rules.looks_twice:
                    yield "finds checkpoints", state, one._replace(at="missed")
                else:
                    yield self._takes_it_for_lost(state, one)
            case "missed":
                if state.head is None:
                    yield self._takes_it_for_lost(state, one)
                else:
                    yield "finds the head after all", state, one._replace(at="claim")
            case "again":
                looks = {"always": True, "anew": one.made_anew, "never": False}[self.rules.looks_again]
                if state.marked or not looks:
                    yield "goes on", state, one._replace(at="load")
                else:
                    yield "finds no mark any more", state._replace(head=None), ended
            case "load":
                head = self.heads.of(one.view)
                assert head is not None
                whole = complete(state)
                good = [entry.step for entry in head.checkpoints if entry.folder in whole]
                yield "resumes", state, one._replace(at="fence", step=max([0, *good]))
            case "fence":
                if one.step >= self.steps:
                    yield "has done its steps", state, one._replace(at="product")
                    return
                try:
                    if not (state.head is None and state.marked):
                        self._mine(state, one)
                except (Fenced, HeadLost):
                    yield "sees that it is fenced", state, ended
                else:
                    following = "content" if self.rules.content_first else "swap"
                    yield "holds the head", state, one._replace(at=following)
            case "content":
                changed = state._replace(folders=state.folders | {(folder, False)})
                yield "puts content", changed, one._replace(at="manifest")
            case "manifest":
                changed = state._replace(folders=state.folders - {(folder, False)} | {(folder, True)})
                yield "puts its manifest", changed, one._replace(at="swap" if self.rules.content_first else "tidy")
            case "swap":
                entry = CheckpointEntry(attempt=one.number, step=one.step + 1, manifest_sha256=HASH)
                try:
                    mine = self._mine(state, one)
                    wanted = heads.commit(mine, entry, keep=1)
                except (Fenced, HeadLost):
                    yield "cannot commit", state, ended
                    return
                changed = state
                if wanted != mine:
                    changed = self._committed(state, wanted, one.number, entry.step)
                after = "tidy" if self.rules.content_first else "content"
                done = one._replace(at=after, view=self.heads.key(wanted), step=one.step + 1)
                if not self.rules.content_first:
                    done = done._replace(step=one.step)
                yield f"commits step {one.step + 1}", changed, done
                if state.losses:
                    fewer = changed._replace(losses=state.losses - 1)
                    yield f"commits step {one.step + 1}, and is not told so", fewer, one
                    if one.step + 1 < self.steps:
                        later = one._replace(at="fence", step=one.step + 1)
                        yield f"commits step {one.step + 1}, is not told so, and goes on", fewer, later
            case "tidy":
                doomed = self._left_over(state, one)
                following = "confirm" if doomed and self.rules.confirms else "delete"
                yield "looks for what is left over", state, one._replace(at=following, doomed=doomed)
            case "confirm":
                try:
                    self._mine(state, one)
                except (Fenced, HeadLost):
                    yield "sees that it is fenced, and deletes nothing", state, ended
                else:
                    yield "holds the head still", state, one._replace(at="delete")
            case "delete":
                if not one.doomed:
                    yield "has nothing more to delete", state, one._replace(at="sweep")
                    return
                name = min(one.doomed)
                changed = state._replace(folders=frozenset(pair for pair in state.folders if pair[0] != name))
                yield f"deletes {name}", changed, one._replace(doomed=one.doomed - {name})
            case "sweep":
                head = self.heads.of(one.view)
                assert head is not None
                gone = frozenset(head.garbage)
                try:
                    swept = heads.sweep(self._mine(state, one), gone)
                except (Fenced, HeadLost):
                    yield "cannot sweep", state, ended
                    return
                following = "ended" if swept.artifact is not None and one.step >= self.steps else "fence"
                key = self.heads.key(swept)
                yield "sweeps", state._replace(head=key), one._replace(at=following, view=key)
                if state.losses and gone:
                    yield "sweeps, and is not told so", state._replace(head=key, losses=state.losses - 1), one
            case "product":
                name = layout.artifact(one.number)
                changed = state._replace(folders=state.folders | {(name, True)})
                yield "puts its artifact", changed, one._replace(at="publish")
            case "publish":
                try:
                    mine = self._mine(state, one)
                    product = ArtifactEntry(attempt=one.number, step=one.step, manifest_sha256=HASH)
                    named = heads.publish(mine, product)
                except (Fenced, HeadLost):
                    yield "cannot publish", state, ended
                    return
                if named != mine and (state.buried or one.number != state.fence):
                    raise Broken(f"attempt {one.number} published though it was fenced")
                key = self.heads.key(named)
                yield "publishes", state._replace(head=key), one._replace(at="tidy", view=key)
                if state.losses:
                    yield "publishes, and is not told so", state._replace(head=key, losses=state.losses - 1), one

    def _takes_it_for_lost(self, state: State, one: Attempt) -> Step:
        if state.head is not None:
            raise Broken(f"attempt {one.number} takes a head for lost that is there")
        return "takes the head for lost", state, one._replace(at="ended")

    def _committed(self, state: State, head: Head, attempt: int, step: int) -> State:
        """Judge a swap that has added an entry."""
        if state.buried:
            raise Broken(f"attempt {attempt} committed after the tombstone")
        if attempt != state.fence:
            raise Broken(f"attempt {attempt} committed though {state.fence} has claimed the head")
        return state._replace(head=self.heads.key(head), durable=(*state.durable, step)[-2:])

    def _left_over(self, state: State, one: Attempt) -> frozenset[str]:
        """What an attempt deletes after a commit: as :meth:`Checkpoints.tidy` chooses it, by its own view."""
        head = self.heads.of(one.view)
        assert head is not None
        named = {entry.folder for entry in head.checkpoints}
        if head.artifact is not None:
            named.add(head.artifact.folder)
        found = set(head.garbage)
        if not self.rules.garbage_after_swap:
            found |= {entry.folder for entry in head.checkpoints[:-1]}
        for name, _ in state.folders:
            attempt, _, step = name.split("/")[1].partition("-")
            mine = int(attempt) == one.number and step != "" and int(step) < one.step
            if name not in named and (int(attempt) < one.number or mine):
                found.add(name)
        return frozenset(found)

    def _mine(self, state: State, one: Attempt) -> Head:
        return heads.check_fence(self.heads.of(state.head), attempt=one.number, pod_uid=pod(one.number))
