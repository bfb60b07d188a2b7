"""The head changed by compare-and-swap: races, lost answers, and limits, on the real server."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorafinetune.contract import canonical, layout
from lorafinetune.contract import head as heads
from lorafinetune.contract.head import CheckpointEntry, Fenced, Head
from lorafinetune.storage import errors
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from tests.integration.trainer.faults import Fault, Kind, Proxy
from tests.integration.trainer.s3 import serve

UID = "uid-of-the-run"


def claim(bucket: Bucket, attempt: int, pod: str = "") -> Head:
    return stored.change(
        bucket, lambda head: heads.claim(head, run_uid=UID, attempt=attempt, pod_uid=pod or f"pod-{attempt}")
    )


def commit(bucket: Bucket, attempt: int, step: int) -> Head:
    entry = CheckpointEntry(attempt=attempt, step=step, manifest_sha256="0" * 64)
    return stored.change(
        bucket,
        lambda head: heads.commit(heads.check_fence(head, attempt=attempt, pod_uid=f"pod-{attempt}"), entry, keep=2),
    )


def test_claims_race_and_the_highest_holds(bucket: Bucket) -> None:
    def race(attempt: int) -> int:
        try:
            return claim(bucket, attempt).attempt
        except Fenced:
            return 0

    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(race, range(1, 9)))
    assert claimed[7] == 8
    assert all(one in (0, attempt) for attempt, one in enumerate(claimed, start=1))
    head = stored.read(bucket).head
    assert head is not None
    assert (head.attempt, head.pod_uid) == (8, "pod-8")


def test_two_pods_of_one_attempt_race_and_one_holds(bucket: Bucket) -> None:
    def race(pod: str) -> bool:
        try:
            claim(bucket, 1, pod)
        except Fenced:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, [f"pod-{number}" for number in range(8)])) == 1


def test_no_change_is_lost_between_racing_writers(bucket: Bucket) -> None:
    claim(bucket, 1)

    def add(number: int) -> None:
        def transition(head: Head | None) -> Head:
            assert head is not None
            mine = f"checkpoints/1-{number}/"
            return head.model_copy(update={"garbage": sorted({*head.garbage, mine})})

        stored.change(bucket, transition)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(30)))
    head = stored.read(bucket).head
    assert head is not None
    assert len(head.garbage) == 30


KINDS = [Kind.LOSE_ANSWER, Kind.ERROR_AFTER, Kind.REFUSE, Kind.DROP]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, 3])
def test_whatever_is_lost_the_changes_take_effect_once(kind: Kind, times: int, through: Bucket, between: Proxy) -> None:
    def trouble() -> None:
        between.faults = [Fault(kind, "PUT", layout.HEAD, times=times), Fault(kind, "GET", layout.HEAD, times=1)]

    trouble()
    claim(through, 1)
    for step in (10, 20, 30):
        trouble()
        head = commit(through, 1, step)
    assert [entry.step for entry in head.checkpoints] == [20, 30]
    assert head.garbage == ["checkpoints/1-10/"]
    trouble()
    assert claim(through, 2).checkpoints == head.checkpoints
    with pytest.raises(Fenced):
        commit(through, 1, 40)
    assert len(between.happened) >= 10


def test_the_same_change_twice_writes_once(through: Bucket, between: Proxy) -> None:
    claim(through, 1)
    before = len([1 for method, _ in between.seen if method == "PUT"])
    claim(through, 1)
    assert len([1 for method, _ in between.seen if method == "PUT"]) == before


def test_it_gives_up_within_its_limit(through: Bucket, between: Proxy) -> None:
    claim(through, 1)
    between.faults = [Fault(Kind.REFUSE, "PUT", layout.HEAD, times=1000)]
    ticks = itertools.count(0, 1.0)
    pauses: list[float] = []
    with pytest.raises(errors.Unreachable, match="within 5 s"):
        stored.change(
            through,
            lambda head: heads.claim(head, run_uid=UID, attempt=2, pod_uid="x"),
            limit=5,
            clock=lambda: next(ticks),
            sleep=pauses.append,
        )
    assert 3 <= len(pauses) <= 6
    assert pauses[-1] > pauses[0]


def test_denied_is_not_tried_again(through: Bucket, between: Proxy) -> None:
    through.at(through.location._replace(bucket="no-such-bucket"))
    with pytest.raises(errors.BucketMissing):
        claim(through.at(through.location._replace(bucket="no-such-bucket")), 1)
    assert len(between.seen) <= 2


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"version": 1, "runUid": "x"}'])
def test_what_is_no_head_is_a_lost_one(text: bytes, bucket: Bucket) -> None:
    bucket.put(layout.HEAD, text)
    head, etag = stored.read(bucket)
    assert head is None
    assert etag is not None, "it is replaced by its ETag, not created beside it"


def test_the_head_of_another_version_is_refused(bucket: Bucket) -> None:
    bucket.put(layout.HEAD, b'{"version": 2, "runUid": "x", "attempt": 1}')
    with pytest.raises(errors.NotVerified, match="another version"):
        stored.read(bucket)


@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_mark_is_put_once(kind: Kind, through: Bucket, bucket: Bucket, between: Proxy) -> None:
    between.faults = [Fault(kind, "PUT", layout.OWNER, times=2), Fault(kind, "GET", layout.OWNER, times=1)]
    stored.mark_owner(through, stored.Owner(run_uid=UID, namespace="n", name="x"))
    stored.mark_owner(through, stored.Owner(run_uid=UID, namespace="n", name="x"))
    assert stored.read_owner(bucket) == stored.Owner(run_uid=UID, namespace="n", name="x")
    with pytest.raises(errors.Conflict, match="belongs to run uid-of-the-run"):
        stored.mark_owner(through, stored.Owner(run_uid="another"))


def test_two_uids_that_begin_alike_are_told_apart_in_words(bucket: Bucket) -> None:
    """By hand a person chooses them, and both lead to one place."""
    stored.mark_owner(bucket, stored.Owner(run_uid="timber-dog-1"))
    stored.mark_owner(bucket, stored.Owner(run_uid="timber-dog-1"))
    with pytest.raises(errors.Conflict, match=r"timber-d, are those of run\.uid timber-dog-2 too: choose another run"):
        stored.is_marked(bucket, "timber-dog-2")
    with pytest.raises(errors.Conflict, match=r"belongs to run timber-dog-1: name another storage\.uri"):
        stored.is_marked(bucket, "timber-2")


def test_an_owner_mark_that_cannot_be_put_is_given_up(through: Bucket, between: Proxy) -> None:
    between.faults = [Fault(Kind.REFUSE, method, times=1000) for method in ("PUT", "GET")]
    ticks = itertools.count(0, 1.0)
    with pytest.raises(errors.Unreachable, match="owner mark"):
        stored.mark_owner(through, stored.Owner(run_uid=UID), limit=3, clock=lambda: next(ticks), sleep=lambda _: None)


@pytest.fixture
def torn(tmp_path: Path) -> Iterator[Bucket]:
    """A place on a server that stores checksum, ETag and bytes one after the other: a reader may get some of each."""
    with serve(tmp_path, sidecar=True) as access:
        yield access.bucket("s3://loras/torn/")


def test_a_head_read_while_it_is_swapped_is_never_an_old_one_with_the_new_etag(torn: Bucket) -> None:
    """Else a swap by that ETag would undo what it has not seen, a claim for instance, and the older attempt go on."""
    bucket = torn
    swaps = 300
    claim(bucket, 1)
    known: dict[str, int] = {}
    done = threading.Event()

    def watch() -> list[str]:
        seen: list[str] = []
        while not done.is_set():
            with contextlib.suppress(errors.Unreachable):  # torn too often in a row: nothing is done upon it
                found = stored.read(bucket)
                assert found.head is not None
                if found.etag in known and known[found.etag] > found.head.attempt:
                    seen.append(f"attempt {found.head.attempt} with the ETag of {known[found.etag]}")
        return seen

    with ThreadPoolExecutor(3) as pool:
        watchers = [pool.submit(watch) for _ in range(3)]
        try:
            etag = stored.read(bucket).etag
            for attempt in range(2, swaps):
                body = canonical.encode(Head(run_uid=UID, attempt=attempt, pod_uid=f"pod-{attempt}").to_json())
                known[f'"{hashlib.md5(body).hexdigest()}"'] = attempt  # which is what this server makes of it
                assert etag is not None
                etag = bucket.replace(layout.HEAD, body, etag)
                assert known[etag] == attempt
        finally:
            done.set()
        assert [one for watcher in watchers for one in watcher.result()] == []
