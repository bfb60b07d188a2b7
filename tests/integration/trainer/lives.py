"""Whole attempts of the real trainer in this process, each ended at one of its moments: killed, or with a notice.

A moment is a request that is about to go out, an event that is about to be told, or a step that has just been done: all
that anybody else can ever see of an attempt lies between two of them. Only the end of the process is played: the real
`Ending` hears a signal that the life gives itself, and its last call ends the life.

This runs in a child of the preloaded process (see `process.Stage`), for it changes modules that others use.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from lorafinetune.contract.event import EventType
from lorafinetune.contract.layout import Location
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer import attempt, ending, imports, places
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import explain
from lorafinetune_trainer.saving.checkpoints import Snapshot
from lorafinetune_trainer.telling.report import Reporter
from tests.integration.trainer.dying import Killed, before_each_request, say_nothing_of_the_dead

LIMIT = 60.0


class Moment(NamedTuple):
    """A place in an attempt where it can be ended."""

    phase: str
    what: str
    """``step``, the type of an event, or method and key of a request."""


@dataclass(frozen=True)
class Lived:
    """What became of an attempt."""

    moments: list[Moment]
    """All that it has come to; the last is the one at which it was ended, if it was."""
    code: int | None
    """Its exit code; None where it was killed."""
    done: int
    """Steps that it had done when it was ended."""
    step: int
    durable_step: int
    """As it would have said in its last words."""
    resumed: int | None
    """The step with which it began, once it said so."""
    told: int
    """The newest step that it has told to be durable."""
    failure: str


class Life:
    """One attempt, from its first request to its end."""

    def __init__(self, config: RunConfig, number: int, *, ends_at: int | str | None, notice: bool) -> None:
        """It ends at the moment number *ends_at* (0, 1 ...), or the first of that name, with *notice* or without.

        None: not before its time.
        """
        self._config, self._number = config, number
        self._ends_at, self._notice = ends_at, notice
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._signal = threading.Event()
        self._met = self._dead = False
        self._moments: list[Moment] = []
        self._done = self._told = 0
        self._resumed: int | None = None
        self._code: int | None = None
        self._failure = ""
        self._ending = _Ending(self, notice_seconds=config.notice_seconds)

    def moment(self, what: str) -> None:
        """Come to a moment, in any thread: raises Killed where the attempt is dead, or dies here."""
        with self._lock:
            if self._dead:
                raise Killed
            here = len(self._moments)
            self._moments.append(Moment(str(self._ending.standing.phase), what))
            if self._met or self._ends_at not in (here, what):
                return
            self._met = True
            self._done = self._ending.standing.step
            if not self._notice:
                self._dead = True
                self._over.set()
                raise Killed
        self._signal.set()
        self._ending.noticed.wait(LIMIT)

    def told(self, type_: EventType, step: int) -> None:
        """Note what an event says."""
        if type_ is EventType.STARTED:
            self._resumed = step
        if type_ is EventType.CHECKPOINT:
            self._told = max(self._told, step)

    def live(self) -> Lived:
        """Live to the end, and until the last thread has gone."""
        global _now  # noqa: PLW0603 - one life at a time, and what it is called from knows of no lives
        before = set(threading.enumerate())
        _now = self
        # The last words of a process, and what it does when it has nothing to do any more.
        ending.os = SimpleNamespace(_exit=self._exit)  # type: ignore[attr-defined]
        self._ending.watch()
        main = threading.Thread(target=self._main, name="main of a life", daemon=True)
        main.start()
        assert self._over.wait(LIMIT), f"it neither ends nor goes on: {self._moments[-5:]}"
        with self._lock:
            self._dead = True
        standing = self._ending.standing
        self._wait_for_threads(before, main)
        if self._ending.scratch is not None:  # as the node does
            shutil.rmtree(self._ending.scratch, ignore_errors=True)
        gc.collect()
        return Lived(
            moments=self._moments,
            code=self._code,
            done=self._done,
            step=standing.step,
            durable_step=standing.durable_step,
            resumed=self._resumed,
            told=self._told,
            failure=self._failure,
        )

    def signalled(self) -> signal.Signals:
        """Wait for SIGTERM, which comes once, or for the end."""
        while not self._signal.wait(0.05):
            if self._over.is_set():
                raise Killed
        self._signal.clear()
        return signal.SIGTERM

    def outlive(self) -> NoReturn:
        """Wait for the end of the process, as a thread does that has nothing more to say."""
        self._over.wait()
        raise Killed

    def _main(self) -> None:
        """As `main.main`, for a config that is right."""
        try:
            told = attempt.Told(self._number, f"pod-{self._number}")
            self._ending.finish(attempt.run(self._config, told, self._ending))
        except Killed:
            pass
        except BaseException as error:
            failure = explain(error)
            self._failure = f"{failure.reason}: {failure.message}"
            self._ending.fail(failure)

    def _exit(self, code: int) -> NoReturn:
        with self._lock:
            if not self._dead:
                self._dead, self._code = True, code
        self._over.set()
        raise Killed

    def _wait_for_threads(self, before: set[threading.Thread], main: threading.Thread) -> None:
        """See each thread of the life end, so that none takes part in the next one."""
        main.join(LIMIT)
        saver = getattr(self._ending.rescue, "__self__", None)
        if saver is not None:
            saver.offer(Snapshot(10**6, 0, {}), "periodic")  # it wakes up, asks for the head, and is dead
        deadline = time.monotonic() + LIMIT
        for one in set(threading.enumerate()) - before:
            if isinstance(one, threading.Timer):
                one.cancel()
            one.join(max(0.0, deadline - time.monotonic()))
            assert not one.is_alive(), f"the thread {one.name} outlives its attempt"


class _Ending(Ending):
    """The real one, which also notices steps."""

    __slots__ = ("life",)

    def __init__(self, life: Life, *, notice_seconds: float) -> None:
        super().__init__(notice_seconds=notice_seconds)
        self.life = life

    def hold(self) -> None:
        self.life.moment("step")
        super().hold()


class _Voice(Reporter):
    """Tells nothing to anybody."""

    def tell(self, type_: EventType, step: int, **members: Any) -> None:
        _life().moment(f"{type_} {step}")
        _life().told(type_, step)

    def _write(self, *_: Any, **__: Any) -> None:
        pass


_now: Life | None = None


def _life() -> Life:
    assert _now is not None
    return _now


def _request(method: str, url: str) -> None:
    parts = urlsplit(url)
    _life().moment(f"{method} {unquote(parts.path)}{'?' if parts.query else ''}{parts.query[:40]}")


def _open(config: RunConfig) -> Bucket:
    """As `places.open_prefix`, with clients that are made once."""
    bucket, urgent = (one.at(config.prefix) for one in _clients(config.storage.endpoint, config.storage.credentials))
    bucket.hasty = lambda _: urgent  # type: ignore[method-assign]
    return bucket


@functools.cache
def _clients(endpoint: str | None, credentials: str | None) -> tuple[Bucket, Bucket]:
    bucket = Bucket(Location("", ""), endpoint=endpoint, credentials=places.read_credentials(credentials))
    urgent = bucket.hasty(5.0)
    for one in (bucket, urgent):
        before_each_request(one, _request)
    return bucket, urgent


def begin(scratch: str) -> None:
    """Make this process one in which attempts live; what they write to disk goes below *scratch*."""
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    tempfile.tempdir = scratch
    imports.settle(scratch)
    tqdm.monitor_interval = 0  # no thread of its own
    say_nothing_of_the_dead()
    # Each collects and freezes all that there is, for it expects to be the only one: that took a fifth of its time.
    attempt.gc = SimpleNamespace(collect=lambda: None, freeze=lambda: None)  # type: ignore[attr-defined]
    attempt.Reporter = _Voice  # type: ignore[misc]
    attempt.places = SimpleNamespace(open_prefix=_open)  # type: ignore[attr-defined]
    ending.signals = SimpleNamespace(wait=lambda: _life().signalled())  # type: ignore[attr-defined]
    ending._wait_for_ever = lambda: _life().outlive()  # type: ignore[attr-defined]


def live(config: dict[str, Any], number: int, ends_at: int | str | None = None, *, notice: bool = False) -> Lived:
    """Live attempt *number* of the run with that config: see :class:`Life`."""
    return Life(RunConfig.model_validate(config), number, ends_at=ends_at, notice=notice).live()
