"""The head in its bucket: read, and changed only by compare-and-swap, with lost answers judged by their effect."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from pydantic import ValidationError

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import MAX_HEAD_BYTES, Head
from lorafinetune.contract.model import OpenModel
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket

SWAP_LIMIT: Final = 60.0
"""Seconds within which one change must have taken effect or been refused."""
MAX_PAUSE: Final = 5.0

_Answer = TypeVar("_Answer")


class Owner(OpenModel):
    """The run's mark on its prefix: nothing below a prefix without it is ever deleted."""

    run_uid: str
    namespace: str = ""
    name: str = ""


class Stored(NamedTuple):
    """A head as read, with the ETag that a swap must name. Both are None where no head is.

    Of an object that is no head there is an ETag only: what lay there is lost, and a swap replaces it.
    """

    head: Head | None
    etag: str | None


def read(bucket: Bucket) -> Stored:
    """Read the head of the run whose prefix *bucket* stands on. One of another version raises OtherVersion."""
    try:
        # Bytes of one version with the ETag of the next would let a swap undo what it has not seen: a claim, say. A
        # store that keeps them in two files (versitygw with a sidecar) gives that to who reads while it writes.
        body, etag = bucket.get(layout.HEAD, limit=MAX_HEAD_BYTES, checked=True)
    except errors.ObjectMissing:
        return Stored(None, None)
    try:
        return Stored(Head.model_validate_json(body), etag)
    except ValidationError as error:
        if _version(body) == 1 or _version(body) is None:
            return Stored(None, etag)
        raise errors.OtherVersion(
            f"{bucket.uri(layout.HEAD)} was written by another version of lorafinetune: use that one"
        ) from error


def _version(body: bytes) -> object:
    try:
        content = json.loads(body)
    except ValueError:
        return None
    return content.get("version") if isinstance(content, dict) else None


def change(
    bucket: Bucket,
    transition: Callable[[Head | None], Head],
    *,
    limit: float = SWAP_LIMIT,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Head:
    """Apply *transition* to the head by compare-and-swap and return the head that then stands in the bucket.

    *transition* is pure, idempotent on its own result, and raises (Fenced, HeadLost) to refuse; it is asked anew after
    every lost race and every lost answer, on what is read then. So an answer that was lost is judged by its effect: if
    the transition has nothing left to change, it had been applied. Raises Unreachable when *limit* seconds were not
    enough.
    """

    def swap() -> Head:
        stored = read(bucket)
        wanted = transition(stored.head)
        if wanted == stored.head:
            return wanted
        body = canonical.encode(wanted.to_json())
        if stored.etag is None:
            bucket.create(layout.HEAD, body)
        else:
            bucket.replace(layout.HEAD, body, stored.etag)
        return wanted

    what = f"the head could not be changed within {limit:.0f} s"
    return _insist(swap, what, (errors.Conflict, errors.Unreachable), limit=limit, clock=clock, sleep=sleep)


def mark_owner(
    bucket: Bucket,
    owner: Owner,
    *,
    limit: float = SWAP_LIMIT,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Put the ownership mark, once; raises Conflict where the prefix is another run's, Unreachable after *limit* s."""

    def put() -> None:
        with contextlib.suppress(errors.Conflict):  # what lies there is read below
            bucket.create(layout.OWNER, canonical.encode(owner.to_json()))
        if not _carries_mark(bucket, owner.run_uid):
            raise errors.Unreachable("it vanishes as soon as it is written")

    what = f"the owner mark of {bucket.uri()} could not be written"
    _insist(put, what, (errors.Unreachable,), limit=limit, clock=clock, sleep=sleep)


def is_marked(bucket: Bucket, run_uid: str) -> bool:
    """Whether the prefix carries this run's mark; raises Conflict if another run's, Unreachable after SWAP_LIMIT."""
    what = f"the owner mark of {bucket.uri()} could not be read"
    return _insist(lambda: _carries_mark(bucket, run_uid), what, (errors.Unreachable,))


def _carries_mark(bucket: Bucket, run_uid: str) -> bool:
    found = read_owner(bucket)
    if found is not None and found.run_uid != run_uid:
        first = run_uid[: layout.UID_LENGTH]
        if found.run_uid[: layout.UID_LENGTH] == first:  # by hand: Kubernetes makes uids that differ there
            raise errors.Conflict(
                f"{bucket.uri()} belongs to run {found.run_uid}, and the first {layout.UID_LENGTH} characters of its "
                f"uid, {first}, are those of run.uid {run_uid} too: choose another run.uid"
            )
        raise errors.Conflict(f"{bucket.uri()} belongs to run {found.run_uid}: name another storage.uri")
    return found is not None


def _insist(
    ask: Callable[[], _Answer],
    what: str,
    passing: tuple[type[errors.StorageError], ...],
    *,
    limit: float = SWAP_LIMIT,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> _Answer:
    """Ask until there is an answer, through errors that are *passing*; raises Unreachable that says *what*, at last."""
    deadline = clock() + limit
    pause = 0.05
    while True:
        try:
            return ask()
        except passing as error:
            if clock() + pause > deadline:
                raise errors.Unreachable(f"{what}: {error}") from error
        sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, MAX_PAUSE)


def read_owner(bucket: Bucket) -> Owner | None:
    """Return the prefix's ownership mark, or None where there is none."""
    try:
        body, _ = bucket.get(layout.OWNER, limit=MAX_HEAD_BYTES)
        return Owner.model_validate_json(body)
    except errors.ObjectMissing:
        return None
    except ValidationError as error:
        raise errors.NotVerified(
            f"{bucket.uri(layout.OWNER)} is not an owner mark ({error.errors()[0]['msg']}): delete that object if what "
            "lies beside it is this run's, else name another storage.uri"
        ) from error
