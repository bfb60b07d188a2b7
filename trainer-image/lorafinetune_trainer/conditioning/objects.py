"""The conditioning's objects in the bucket: what lies there counts, what is missing is computed and put.

The computing is one line: pictures are read and scaled some ahead of it, results are put some behind it, both bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.manifest import File
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.saving import state

if TYPE_CHECKING:
    import torch

AHEAD: Final = 4
"""Pictures that are ready before the model wants them."""
BEHIND: Final = 4
"""Results that are being put while the model goes on."""
ADOPTED: Final = 8
"""Objects of earlier attempts that are read at once."""
CREATE_ATTEMPTS: Final = 5
_DIGEST: Final = "digest"

_Item = TypeVar("_Item")
_Ready = TypeVar("_Ready")
Compute = Callable[[_Ready], "dict[str, torch.Tensor]"]


class Objects:
    """What is kept of one run's conditioning."""

    def __init__(self, bucket: Bucket, *, before_put: Callable[[], None], progress: Callable[[int], None]) -> None:
        """*before_put* raises where nothing may be put any more, in any thread; *progress* is told what is there."""
        self._bucket = bucket
        self._before_put = before_put
        self._progress = progress
        self._there = {one.key for one in bucket.walk(layout.CONDITIONING)}
        self._damaged: set[str] = set()
        self.files: dict[str, File] = {}
        """What is there, by key."""

    def keep(
        self,
        items: Mapping[str, _Item],
        *,
        ready: Callable[[_Item], _Ready],
        load: Callable[[], Compute[_Ready]],
    ) -> None:
        """See to it that an object lies under each key of *items*.

        *ready* reads what one item is computed from, in some thread. *load* loads the models and returns what computes
        the tensors, in this thread, one item after the other; it is called only if something is missing.
        """
        wanted = {key: item for key, item in items.items() if key not in self.files}
        present = [key for key in wanted if layout.conditioning(key) in self._there]
        missing = {key: item for key, item in wanted.items() if layout.conditioning(key) not in self._there}
        with ThreadPoolExecutor(ADOPTED, thread_name_prefix="adopt") as pool:
            for key, file in zip(present, ahead(pool, self._adopt, present, ADOPTED), strict=True):
                if file is not None:
                    self._note(file)
                else:
                    missing[key] = wanted[key]
        if not missing:
            return
        compute = load()  # its models leave the memory when this returns
        reading = ThreadPoolExecutor(AHEAD, thread_name_prefix="read")
        putting = ThreadPoolExecutor(BEHIND, thread_name_prefix="put")
        waiting: deque[Future[File]] = deque()
        try:
            pictures = ahead(reading, ready, missing.values(), AHEAD)
            for key, given in zip(missing, pictures, strict=True):
                body = sealed(compute(given))
                if len(waiting) == BEHIND:
                    self._note(waiting.popleft().result())
                waiting.append(putting.submit(self.put, key, body))
            while waiting:
                self._note(waiting.popleft().result())
        finally:
            for one in (reading, putting):
                one.shutdown(cancel_futures=True)

    def put(self, key: str, body: bytes) -> File:
        """Put an object where nothing lies; where something whole does, or may, that is what counts."""
        if layout.conditioning(key) in self._there and (file := self._adopt(key)) is not None:
            return file
        for again in reversed(range(CREATE_ATTEMPTS)):
            self._before_put()
            try:
                if key in self._damaged:  # nothing is pinned yet, and earlier attempts only create
                    self._bucket.put(layout.conditioning(key), body)
                else:
                    self._bucket.create(layout.conditioning(key), body)
            except errors.Conflict:
                # An earlier attempt put it, or we did and the answer was lost.
                if (file := self._adopt(key)) is not None:
                    return file
                if not again:
                    where = self._bucket.uri(layout.conditioning(key))
                    raise errors.NotVerified(f"{where} is damaged: delete it") from None
            except errors.Unreachable:
                if not again:
                    raise
                time.sleep(0.5)
            else:
                return File(name=key, size=len(body), sha256=canonical.sha256(body))
        raise AssertionError("the last attempt returns or raises")

    def _adopt(self, key: str) -> File | None:
        """Return an object as it lies in the bucket; None where it is damaged, and is to be put anew."""
        body = self._bucket.get(layout.conditioning(key)).body
        found = canonical.sha256(body)
        if found != key and not is_whole(body):  # one that is named by its own hash says all
            self._damaged.add(key)
            return None
        return File(name=key, size=len(body), sha256=found)

    def _note(self, file: File) -> None:
        self.files[file.name] = file
        self._progress(len(self.files))


def sealed(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the file of *tensors*, which says their digest: until it is pinned nothing else does."""
    return state.encode(tensors, {_DIGEST: state.digest(tensors)})


def is_whole(body: bytes) -> bool:
    """Whether *body* is a file whose tensors are what it says; one that says nothing is not."""
    try:
        tensors, metadata = state.decode(body)
    except ValueError:
        return False
    return state.digest(tensors) == metadata.get(_DIGEST)


def ahead(pool: Executor, work: Callable[[_Item], _Ready], items: Iterable[_Item], most: int) -> Iterator[_Ready]:
    """Yield *work* of each of *items*, in their order, with at most *most* of them under way or waiting."""
    waiting: deque[Future[_Ready]] = deque()
    for item in items:
        if len(waiting) == most:
            yield waiting.popleft().result()
        waiting.append(pool.submit(work, item))
    while waiting:
        yield waiting.popleft().result()
