"""What there is in the model of the storage protocol: head, folders, attempts, and the rules that they keep to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lorafinetune.contract import canonical
from lorafinetune.contract.head import Head

RUN = "run"
HASH = "0" * 64
ENDED = ("ended", "dead")
UNHEARD = ("mark", "claim", "missing", "missed", "anew")
"""Where an attempt stands before it has claimed the head: nobody knows of it."""


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
    losses: int = 0
    """Those that were still to come when it looked for checkpoints: a head that is deleted just after that, by hand, is
    made anew without them. Then steps are lost; nothing that the next head names is."""


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
    durable: tuple[int, ...]
    """The newest two steps that were ever committed, and not lost with a head."""
    forgotten: frozenset[str]
    """Folders that the head named when it was deleted, until there is one again."""


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
    looks_twice: bool = True
    """Who finds checkpoints and no head looks for the head once more."""
    confirms: bool = True
    """Who has found what is left over looks at the head again before it deletes."""


@dataclass
class Heads:
    """The heads that were ever written, by their bytes: a state holds those."""

    known: dict[bytes, Head] = field(default_factory=dict)

    def key(self, head: Head) -> bytes:
        """Return what stands for *head*."""
        key = canonical.encode(head.to_json())
        self.known.setdefault(key, head)
        return key

    def of(self, key: bytes | None) -> Head | None:
        """Return the head that *key* stands for."""
        return self.known[key] if key is not None else None


def pod(number: int) -> str:
    """Return the pod of an attempt."""
    return f"pod-{number}"


def complete(state: State) -> frozenset[str]:
    """Return the folders that have their manifest."""
    return frozenset(name for name, whole in state.folders if whole)
