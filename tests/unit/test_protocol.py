"""Every order of what attempts, the operator and a lossy store can do, tried on the real transitions of the head.

That the search can find something is shown by breaking the transitions, and the order of the steps, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lorafinetune.contract import head as heads
from lorafinetune.contract.head import CheckpointEntry, Head
from tests.unit.protocol.search import Search
from tests.unit.protocol.state import Broken, Rules

DELETION = {"attempts": 2, "steps": 2, "losses": 0}
COMMIT = heads.commit
LOSSES = {"attempts": 2, "steps": 3, "losses": 1, "deletes": False}


@pytest.mark.parametrize(
    ("search", "states"),
    [
        pytest.param(Search(attempts=2, steps=2, losses=1), 20_000, id="a deletion"),
        pytest.param(Search(attempts=2, steps=3, losses=2, deletes=False), 10_000, id="lost answers"),
        pytest.param(Search(attempts=3, steps=1, losses=1, deletes=False), 10_000, id="three attempts"),
        pytest.param(Search(attempts=3, steps=1, losses=0), 90_000, id="three and a deletion", marks=pytest.mark.long),
        pytest.param(
            Search(attempts=2, steps=4, losses=2, deletes=False), 100_000, id="many steps", marks=pytest.mark.long
        ),
        pytest.param(Search(attempts=2, steps=3, losses=1), 50_000, id="all of it", marks=pytest.mark.long),
    ],
)
def test_no_order_of_steps_breaks_a_promise(search: Search, states: int) -> None:
    assert search.run() > states


def _anybody_claims(head: Head | None, *, run_uid: str, attempt: int, pod_uid: str) -> Head:
    return (head or Head(run_uid=run_uid, attempt=attempt)).model_copy(update={"attempt": attempt, "pod_uid": pod_uid})


def _tombstones_are_claimed(head: Head | None, *, run_uid: str, attempt: int, pod_uid: str) -> Head:
    if head is not None and head.attempt > attempt:
        raise heads.Fenced
    return Head(run_uid=run_uid, attempt=attempt, pod_uid=pod_uid, checkpoints=head.checkpoints if head else [])


def _claims_forget(head: Head | None, *, run_uid: str, attempt: int, pod_uid: str) -> Head:
    if head is not None and (head.tombstone or head.attempt > attempt):
        raise heads.Fenced
    return Head(run_uid=run_uid, attempt=attempt, pod_uid=pod_uid)


def _no_fence(head: Head | None, *, attempt: int, pod_uid: str) -> Head:
    if head is None:
        raise heads.HeadLost
    return head


def _fence_lets_older_ones_through(head: Head | None, *, attempt: int, pod_uid: str) -> Head:
    if head is None:
        raise heads.HeadLost
    if head.tombstone or head.attempt < attempt:
        raise heads.Fenced
    return head


def _fence_knows_no_tombstone(head: Head | None, *, attempt: int, pod_uid: str) -> Head:
    if head is None:
        raise heads.HeadLost
    if head.attempt != attempt:
        raise heads.Fenced
    return head


def _commits_twice(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]) -> Head:
    return head.model_copy(update={"checkpoints": [*head.checkpoints, entry][-keep:]})


def _commits_in_front(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]) -> Head:
    if entry in head.checkpoints:
        return head
    return head.model_copy(update={"checkpoints": [entry, *head.checkpoints][:keep]})


def _all_but_the_entry_is_garbage(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]) -> Head:
    if heads.has_commit(head, entry):
        return head
    garbage = [one.folder for one in head.checkpoints]
    return head.model_copy(update={"checkpoints": [*head.checkpoints, entry][-keep:], "garbage": garbage})


def _the_entry_is_garbage_too(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]) -> Head:
    if entry in head.checkpoints:
        return head
    return head.model_copy(update={"checkpoints": [*head.checkpoints, entry], "garbage": [entry.folder]})


def _commit_keeps_what_was_rejected(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]) -> Head:
    return COMMIT(head, entry, keep=keep)


def _commit_keeps_as_few_as_it_is_told(
    head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]
) -> Head:
    made = COMMIT(head, entry, keep=keep, rejected=rejected)
    return made.model_copy(update={"checkpoints": made.checkpoints[-keep:]})


def _commit_drops_the_others(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str]) -> Head:
    if heads.has_commit(head, entry):
        return head
    return head.model_copy(update={"checkpoints": head.checkpoints[:1] or [entry]})


def _sweep_takes_checkpoints(head: Head, deleted: frozenset[str]) -> Head:
    return head.model_copy(update={"garbage": [], "checkpoints": []})


def _the_artifact_is_its_own_garbage(head: Head, artifact: Any) -> Head:
    return head.model_copy(update={"artifact": artifact, "garbage": [artifact.folder]})


def _buried_alive(head: Head | None, *, run_uid: str, attempt: int) -> Head:
    return head or Head(run_uid=run_uid, attempt=attempt)


def _a_tombstone_that_names_checkpoints(head: Head | None, *, run_uid: str, attempt: int) -> Head:
    return (head or Head(run_uid=run_uid, attempt=attempt)).model_copy(update={"tombstone": True})


TRANSITIONS: list[tuple[str, Callable[..., Head], dict[str, Any]]] = [
    ("claim", _anybody_claims, DELETION),
    ("claim", _tombstones_are_claimed, DELETION),
    ("claim", _claims_forget, DELETION),
    ("check_fence", _no_fence, LOSSES),
    ("check_fence", _fence_lets_older_ones_through, LOSSES),
    ("check_fence", _fence_knows_no_tombstone, DELETION),
    ("commit", _commits_twice, LOSSES),
    ("commit", _commits_in_front, LOSSES),
    ("commit", _all_but_the_entry_is_garbage, LOSSES),
    ("commit", _the_entry_is_garbage_too, LOSSES),
    ("commit", _commit_drops_the_others, LOSSES),
    ("commit", _commit_keeps_what_was_rejected, LOSSES),
    ("commit", _commit_keeps_as_few_as_it_is_told, LOSSES),
    ("sweep", _sweep_takes_checkpoints, LOSSES),
    ("publish", _the_artifact_is_its_own_garbage, LOSSES),
    ("bury", _buried_alive, DELETION),
    ("bury", _a_tombstone_that_names_checkpoints, DELETION),
]


@pytest.mark.parametrize(("name", "broken", "size"), TRANSITIONS, ids=[one[1].__name__ for one in TRANSITIONS])
def test_a_broken_transition_is_found(
    name: str, broken: Callable[..., Head], size: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, name, broken)
    with pytest.raises(Broken):
        Search(**size).run()


@pytest.mark.parametrize(
    ("rules", "size"),
    [
        (Rules(content_first=False), LOSSES),
        (Rules(looks_again="never"), DELETION),
        (Rules(looks_again="anew"), DELETION),
        (Rules(mark_goes_first=False), DELETION),
        (Rules(list_twice=False), DELETION),
        (Rules(garbage_after_swap=False), LOSSES),
        (Rules(bury_first=False), DELETION),
        (Rules(heads_are_missed=False), LOSSES),
        (Rules(looks_twice=False), LOSSES),
        (Rules(confirms=False), LOSSES),
    ],
    ids=repr,
)
def test_a_broken_order_is_found(rules: Rules, size: dict[str, Any]) -> None:
    with pytest.raises(Broken):
        Search(**size, rules=rules).run()
