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
from typing import NamedTuple

from lorafinetune.contract import canonical, layout
from lorafinetune.contract import head as heads
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry, Fenced, Head, HeadLost

RUN = "run"
HASH = "0" * 64
ENDED = ("ended", "dead")


class Attempt(NamedTuple):
    """One attempt: where it stands in its program, and what it believes."""

    number: int
    at: str = "mark"
    step: int = 0
    """The step that it has reached."""
    view: bytes | None = None
    """The head as it last wrote it."""
    made_anew: bool = False
    """It has found no head when it claimed."""
    doomed: frozenset[str] = frozenset()
    """Folders that it is about to delete."""


class State(NamedTuple):
    """All there is, at one moment."""

    head: bytes | None
    marked: bool
    folders: frozenset[tuple[str, bool]]
    """Folders with content, and whether their manifest is there."""
    attempts: tuple[Attempt, ...]
    operator: str
    listed: frozenset[str]
    """Folders that the operator is about to delete, or to name in a head made anew."""
    losses: int
    """Answers, or heads, that may still get lost."""
    fence: int
    """The highest attempt that has claimed the head: what nobody may go behind."""
    buried: bool
    durable: int
    """The newest step that was ever committed and not lost with a head; 0 if none."""


class Broken(Exception):
    """A promise does not hold."""


@dataclass(frozen=True)
class Rules:
    """What the parties do; a test may change one of them to see that the search finds it."""

    content_first: bool = True
    """A checkpoint's folder is complete before the head names it."""
    looks_again: str = "always"
    """Who has claimed the head looks for the mark once more: always, only where it made the head anew, never."""
    mark_goes_first: bool = True
    """A collection deletes the owner mark before the tombstone."""
    list_twice: bool = True
    """A collection lists again when every attempt has ended."""
    garbage_after_swap: bool = True
    """What is superseded is deleted after the head has let go of it."""
    bury_first: bool = True
    """A deletion makes the head a tombstone before it deletes anything."""
    heads_are_missed: bool = True
    """Who finds checkpoints and no head makes none anew."""


@dataclass
class Search:
    """Tries everything that *attempts* attempts of *steps* steps, a deletion and *losses* losses can do."""

    attempts: int = 2
    steps: int = 2
    losses: int = 1
    deletes: bool = True
    rules: Rules = field(default_factory=Rules)
    known: dict[bytes, Head] = field(default_factory=dict)

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
            durable=0,
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
        head = self._head(state.head)
        complete = {name for name, whole in state.folders if whole}
        if head is not None:
            named = [entry.folder for entry in head.checkpoints]
            if head.artifact is not None and not state.buried:
                named.append(head.artifact.folder)
            if missing := [name for name in named if name not in complete]:
                raise Broken(f"the head names {missing[0]}, which is not there")
            if set(named) & set(head.garbage):
                raise Broken("the head names what it calls garbage")
            steps = [entry.step for entry in head.checkpoints]
            if steps != sorted(set(steps)):
                raise Broken(f"the checkpoints stand in the order {steps}")
            if not state.buried and state.durable > max([0, *steps]):
                raise Broken(f"step {state.durable} was durable, and is not any more")
        if state.operator == "gone" and all(one.at in (*ENDED, "mark") for one in state.attempts):
            left = [name for name, _ in state.folders]
            if left or state.head is not None or state.marked:
                raise Broken(f"left after the deletion: {left or 'head or mark'}")

    def _committed(self, state: State, head: Head, attempt: int, step: int) -> State:
        """Judge a swap that has added an entry."""
        if state.buried:
            raise Broken(f"attempt {attempt} committed after the tombstone")
        if attempt != state.fence:
            raise Broken(f"attempt {attempt} committed though {state.fence} has claimed the head")
        return state._replace(head=self._key(head), durable=step)

    # What can happen next

    def _next(self, state: State) -> Iterator[tuple[str, State]]:
        for place, one in enumerate(state.attempts):
            if one.at in ENDED:
                continue
            for said, changed, following in self._attempt(state, one):
                attempts = (*state.attempts[:place], following, *state.attempts[place + 1 :])
                yield f"attempt {one.number} {said}", changed._replace(attempts=attempts)
            if state.operator == "wait":
                dead = (*state.attempts[:place], one._replace(at="dead"), *state.attempts[place + 1 :])
                yield f"attempt {one.number} is killed", state._replace(attempts=dead)
        yield from self._operator(state)
        if state.losses and state.head is not None and not state.buried and state.operator in ("idle", "away"):
            yield "somebody deletes the head", state._replace(head=None, losses=state.losses - 1, durable=0)

    def _attempt(self, state: State, one: Attempt) -> Iterator[tuple[str, State, Attempt]]:
        ended = one._replace(at="ended", view=None, doomed=frozenset())
        folder = layout.checkpoint(one.number, one.step + 1)
        match one.at:
            case "mark":
                found = one._replace(at="claim") if state.marked else ended
                yield "looks for the mark", state, found
            case "claim":
                head = self._head(state.head)
                try:
                    claimed = heads.claim(head, run_uid=RUN, attempt=one.number, pod_uid=_pod(one.number))
                except Fenced:
                    yield "is refused the head", state, ended
                    return
                if head is not None and head.tombstone:
                    raise Broken(f"attempt {one.number} claimed a tombstone")
                if (
                    head is None
                    and self.rules.heads_are_missed
                    and any(name.startswith(layout.CHECKPOINTS) for name, _ in state.folders)
                ):
                    yield "finds checkpoints and no head", state, ended
                    return
                if one.number < state.fence and head is not None:
                    raise Broken(f"attempt {one.number} claimed after {state.fence}")
                anew = one.made_anew or head is None
                fence = max(one.number, state.fence) if head is not None else one.number
                changed = state._replace(head=self._key(claimed), fence=fence)
                told = one._replace(at="again", view=changed.head, made_anew=anew)
                yield "claims", changed, told
                if state.losses:
                    lost = one._replace(made_anew=anew)
                    yield "claims, and is not told so", changed._replace(losses=state.losses - 1), lost
            case "again":
                looks = {"always": True, "anew": one.made_anew, "never": False}[self.rules.looks_again]
                if state.marked or not looks:
                    yield "goes on", state, one._replace(at="load")
                else:
                    yield "finds no mark any more", state._replace(head=None), ended
            case "load":
                head = self._head(one.view)
                assert head is not None
                complete = {name for name, whole in state.folders if whole}
                good = [entry.step for entry in head.checkpoints if entry.folder in complete]
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
                    wanted = heads.commit(mine, entry, keep=2)
                except (Fenced, HeadLost):
                    yield "cannot commit", state, ended
                    return
                changed = state
                if wanted != mine:
                    changed = self._committed(state, wanted, one.number, entry.step)
                after = "tidy" if self.rules.content_first else "content"
                done = one._replace(at=after, view=self._key(wanted), step=one.step + 1)
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
                yield (
                    "looks for what is left over",
                    state,
                    one._replace(at="delete", doomed=self._left_over(state, one)),
                )
            case "delete":
                if not one.doomed:
                    yield "has nothing more to delete", state, one._replace(at="sweep")
                    return
                name = min(one.doomed)
                changed = state._replace(folders=frozenset(pair for pair in state.folders if pair[0] != name))
                yield f"deletes {name}", changed, one._replace(doomed=one.doomed - {name})
            case "sweep":
                head = self._head(one.view)
                assert head is not None
                gone = frozenset(head.garbage)
                try:
                    swept = heads.sweep(self._mine(state, one), gone)
                except (Fenced, HeadLost):
                    yield "cannot sweep", state, ended
                    return
                following = "ended" if swept.artifact is not None and one.step >= self.steps else "fence"
                key = self._key(swept)
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
                key = self._key(named)
                yield "publishes", state._replace(head=key), one._replace(at="tidy", view=key)
                if state.losses:
                    yield "publishes, and is not told so", state._replace(head=key, losses=state.losses - 1), one

    def _operator(self, state: State) -> Iterator[tuple[str, State]]:
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
                    found = frozenset(name for name, whole in state.folders if whole)
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
                    durable = max([0, *(step for step, _ in entries)])
                    after = after._replace(head=self._key(made), fence=top, durable=durable)
                yield "the operator makes the head anew", after
            case "bury":
                head = heads.bury(self._head(state.head), run_uid=RUN, attempt=top)
                if not head.tombstone or head.checkpoints:
                    raise Broken("a buried head is none")
                yield "the operator buries", state._replace(head=self._key(head), buried=True, operator="list")
            case "list":
                yield "the operator lists", state._replace(operator="clear", listed=names)
            case "clear":
                kept = frozenset(pair for pair in state.folders if pair[0] not in state.listed)
                following = "wait" if self.rules.bury_first or state.buried else "late bury"
                yield "the operator clears", state._replace(folders=kept, operator=following, listed=frozenset())
            case "late bury":
                head = heads.bury(self._head(state.head), run_uid=RUN, attempt=top)
                yield "the operator buries", state._replace(head=self._key(head), buried=True, operator="wait")
            case "wait":
                # A lost node may hold a pod that has begun and not claimed yet: it is not waited for for ever.
                if all(one.at in (*ENDED, "mark", "claim") for one in state.attempts):
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

    def _left_over(self, state: State, one: Attempt) -> frozenset[str]:
        """What an attempt deletes after a commit: as :meth:`Checkpoints.tidy` chooses it, by its own view."""
        head = self._head(one.view)
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
        return heads.check_fence(self._head(state.head), attempt=one.number, pod_uid=_pod(one.number))

    def _key(self, head: Head) -> bytes:
        key = canonical.encode(head.to_json())
        self.known.setdefault(key, head)
        return key

    def _head(self, key: bytes | None) -> Head | None:
        return self.known[key] if key is not None else None


def _pod(number: int) -> str:
    return f"pod-{number}"


def _story(before: dict[State, tuple[State, str] | None], last: State) -> list[str]:
    words: list[str] = []
    while (link := before[last]) is not None:
        last, said = link
        words.append(said)
    return words[::-1]
