"""Several attempts of one run at once, over links that are cut and healed: one request at a time, and whose, is drawn.

Each attempt is a thread that does with the real protocol code, on the real server, what an attempt does: claim, load,
pin, commit, tidy, publish. Between two requests nobody moves, so an interleaving is a row of draws and its seed says it
all. Pauses take no time: their clock is made up. What the server holds is looked at after every change of it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import torch
from botocore.exceptions import ReadTimeoutError

from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.storage import errors
from lorafinetune.storage.collect import collect
from lorafinetune_trainer.saving.checkpoints import Checkpoints
from tests.integration.trainer.dying import Killed
from tests.integration.trainer.generations import CONDITIONING, PLAN, Run, product, snapshot
from tests.integration.trainer.s3 import BUCKET, Access

STEPS: Final = 3
REQUESTS: Final = 40
"""Of an attempt that nothing disturbs, about."""
FAILURES: Final = 3
"""Saves that may fail in a row, as the saver has it."""
SELDOM: Final = 0.15
"""How often it is the turn of an attempt that is cut off, or of a request that comes late: time-outs are long."""
LIMIT: Final = 60.0


class Cut(StrEnum):
    """How an attempt is cut off, at one of its requests."""

    SILENT = "nothing gets through"
    ANSWERED = "that request takes effect, its answer is lost, and then nothing gets through"
    LATE = "that request is under way for long, and takes effect some time later; nothing else gets through"
    FROZEN = "the attempt stands still, and goes on later with what it was about to send"


class Link:
    """An attempt's way to the server, on which each request waits for its turn."""

    def __init__(self, s3: Access) -> None:
        self.bucket = s3.bucket(f"s3://{BUCKET}/")
        self.urgent = self.bucket.hasty(5.0)
        self.turn: Callable[[str], tuple[bool, bool, Callable[[Callable[[], object]], None] | None]] | None = None
        for bucket in (self.bucket, self.urgent):
            for client in (bucket._client, bucket._once):
                client.meta.events.register("before-send.s3", partial(self._before_send, client))

    def _before_send(self, client: Any, request: Any, **_: Any) -> None:
        """Wait for the turn of *request*; return where it goes on, raise what a client sees of a cut link."""
        assert self.turn is not None
        passes, takes_effect, later = self.turn(request.method)
        if passes:
            return
        send = partial(client._endpoint.http_session.send, _kept(request))
        if takes_effect:
            send()
        if later is not None:
            later(send)
        raise ReadTimeoutError(endpoint_url=request.url)


def _kept(request: Any) -> Any:
    """Return *request* with a body that can be sent at any time."""
    kept = copy(request)
    if hasattr(request.body, "read"):
        pieces = []
        while piece := request.body.read():
            pieces.append(bytes(piece))
        request.body.seek(0)
        kept.body = b"".join(pieces)
    return kept


@dataclass
class Attempt:
    """One attempt, and what is to become of its link."""

    number: int
    link: Link
    cut_at: int | None = None
    """The request at which it is cut off; None: never."""
    cut: Cut = Cut.SILENT
    successor_after: int = 0
    """Turns from then until the next attempt begins."""
    healed_after: int = 0
    """Requests of the next attempt after which the link is healed."""
    requests: int = 0
    is_cut: bool = False
    is_healed: bool = False
    since_cut: int = 0
    stale: int = 0
    """Requests that got through when a later attempt held the head."""
    waiting: str | None = None
    """The method of the request that waits for its turn."""
    outcome: str = ""
    error: BaseException | None = None


@dataclass
class Interleaving:
    """One run, whose attempts are cut off and replaced as *seed* says."""

    s3: Access
    links: list[Link]
    seed: int
    attempts: list[Attempt] = field(default_factory=list)

    def play(self) -> Counter[str]:
        """Play it to its end, and look whether all is as it must be; return what has happened."""
        self._keys = random.Random(self.seed)
        self._change = threading.Condition()
        self._verdicts: dict[int, tuple[bool, bool, Any]] = {}
        self._late: list[Callable[[], object]] = []
        self._seen: Counter[str] = Counter()
        self.run = Run(self.s3, SimpleNamespace(served=None), SimpleNamespace())  # type: ignore[arg-type]
        number = 3 if self._keys.random() < 0.3 else 2
        self._plans = [self._plan(place + 1, self.links[place], last=place + 1 == number) for place in range(number)]
        self._begin()
        try:
            self._turns()
        finally:
            self._end_threads()
        while self._late:
            self._deliver()
        self._judge()
        return self._seen

    def _plan(self, number: int, link: Link, *, last: bool) -> Attempt:
        keys = self._keys
        if last:
            return Attempt(number, link)
        return Attempt(
            number,
            link,
            cut_at=keys.randrange(REQUESTS),
            cut=keys.choice(list(Cut)),
            successor_after=keys.randrange(8),
            healed_after=keys.randrange(1, REQUESTS + 5),
        )

    def _turns(self) -> None:
        deadline = time.monotonic() + LIMIT
        while True:
            assert time.monotonic() < deadline, "it neither ends nor goes on"
            self._settle()
            live = [one for one in self.attempts if not one.outcome]
            if not live:
                if self.attempts[-1].outcome == "finished" or not self._plans:
                    return
                self._begin()  # it gave up before anybody missed it
                continue
            for one in live:
                self._cut_or_heal(one)
            if self._late and self._keys.random() < SELDOM:
                self._deliver()
                continue
            ready = [one for one in live if not (one.is_cut and one.cut is Cut.FROZEN)]
            if not ready:
                continue  # all that are left stand still: the next look heals or replaces them
            weights = [SELDOM if one.is_cut else 1.0 for one in ready]
            self._grant(self._keys.choices(ready, weights)[0])

    def _cut_or_heal(self, one: Attempt) -> None:
        if not one.is_cut and not one.is_healed and one.requests == one.cut_at:
            one.is_cut = True
        if not one.is_cut:
            return
        one.since_cut += 1
        newest = self.attempts[-1]
        if one is newest:
            if one.since_cut > one.successor_after:
                self._begin()
        elif self.attempts[one.number].requests >= one.healed_after or self.attempts[one.number].outcome:
            one.is_cut, one.is_healed = False, True

    def _grant(self, one: Attempt) -> None:
        method = one.waiting or ""
        first = one.requests == one.cut_at
        one.requests += 1
        verdict: tuple[bool, bool, Any] = (True, False, None)
        if one.is_cut:
            later = self._late.append if first and one.cut is Cut.LATE else None
            verdict = (False, first and one.cut is Cut.ANSWERED, later)
        elif self.run.seen is not None and self.run.seen.attempt > one.number:
            one.stale += 1
        with self._change:
            one.waiting = None
            self._verdicts[one.number] = verdict
            self._change.notify_all()
        self._settle()
        if method not in ("GET", "HEAD"):
            self.run.look()

    def _deliver(self) -> None:
        self._seen["requests that came late"] += 1
        self._late.pop(0)()
        self.run.look()

    # Threads

    def _begin(self) -> None:
        if not self._plans:
            return
        one = self._plans.pop(0)
        one.link.turn = partial(self._turn, one)
        self.attempts.append(one)
        self.run.attempt = one.number
        threading.Thread(target=self._live, args=(one,), daemon=True).start()

    def _turn(self, one: Attempt, method: str) -> tuple[bool, bool, Any]:
        with self._change:
            one.waiting = method
            self._change.notify_all()
            while one.number not in self._verdicts:
                self._change.wait()
            verdict = self._verdicts.pop(one.number)
        if verdict[2] == "dead":
            raise Killed
        return verdict

    def _settle(self) -> None:
        """Wait until every attempt is about to send something, or has ended."""
        with self._change:
            ready = self._change.wait_for(
                lambda: all(one.outcome or one.waiting is not None for one in self.attempts), LIMIT
            )
        assert ready, "an attempt neither sends nor ends"

    def _end_threads(self) -> None:
        with self._change:
            for one in self.attempts:
                self._verdicts[one.number] = (False, False, "dead")
            self._change.notify_all()

    def _live(self, one: Attempt) -> None:
        try:
            self._train(one)
            outcome = "finished"
        except (Fenced, HeadLost) as error:
            outcome, one.error = "fenced", error
        except errors.StorageError as error:
            outcome, one.error = "unreachable", error
        except BaseException as error:
            outcome, one.error = "broken", error
        with self._change:
            one.outcome = outcome
            self._change.notify_all()

    def _train(self, one: Attempt) -> None:
        """What an attempt does, without the training."""
        place, run = self.run.config.prefix, self.run
        checkpoints = Checkpoints(one.link.bucket.at(place), one.link.urgent.at(place), run.config, f"pod-{one.number}")
        checkpoints.claim(one.number, expect_head=run.told > 0)
        found = checkpoints.newest_verified()
        step = found.entry.step if found is not None else 0
        if found is not None:
            loaded, right = found.snapshot(), snapshot(step)
            assert all(torch.equal(loaded.tensors[name], right.tensors[name]) for name in right.tensors)
        assert not checkpoints.rejected, checkpoints.rejected
        checkpoints.pin(PLAN, CONDITIONING)
        failed = 0
        while step < STEPS:
            try:
                checkpoints.commit(snapshot(step + 1), SaveReason.PERIODIC)
                run.told = max(run.told, step + 1)
                checkpoints.tidy()
            except errors.StorageError:
                failed += 1
                if failed == FAILURES or step + 1 == STEPS:
                    raise
            else:
                failed = 0
            step += 1
        checkpoints.publish(step, step, product(step), {})
        checkpoints.tidy()

    # What must have come of it

    def _judge(self) -> None:
        run, last = self.run, self.attempts[-1]
        assert not run.wrong, run.wrong
        for one in self.attempts:
            assert one.outcome in ("finished", "fenced", "unreachable"), (one.outcome, one.error)
            self._seen[one.outcome] += 1
            self._seen["stale requests"] += one.stale
            if one.stale and one is not last:
                self._seen[f"came back after: {one.cut.name}"] += 1
        assert last.outcome == "finished", (last.outcome, last.error)
        run.look()
        head = run.seen
        assert head is not None
        assert head.attempt == last.number
        assert head.artifact is not None
        assert head.artifact.step == STEPS
        assert [entry.step for entry in head.checkpoints] == sorted({entry.step for entry in head.checkpoints})
        assert head.checkpoints[-1].step == STEPS
        self._load()
        collect(run.bucket, run_uid=run.uid, attempt=last.number + 1, keep_artifact=False)
        assert list(run.bucket.walk()) == []
        assert not run.wrong, run.wrong

    def _load(self) -> None:
        """See that a later attempt could resume from what the head names."""
        run = self.run
        checkpoints = Checkpoints(run.bucket, run.bucket, run.config, "pod-later")
        checkpoints.claim(self.attempts[-1].number + 1, expect_head=True)
        found = checkpoints.newest_verified()
        assert found is not None
        loaded, right = found.snapshot(), snapshot(STEPS)
        assert all(torch.equal(loaded.tensors[name], right.tensors[name]) for name in right.tensors)
        assert not checkpoints.rejected
