"""The in-process kill: an attempt that is dead gets nothing out any more, and each of its threads ends when it tries.

What a process that was killed leaves behind is what it has sent. So whoever ends an attempt at each of its requests has
ended it everywhere, without a process of its own for each case.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from lorafinetune.contract.event import EventType
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.saving.saver import Saver
from lorafinetune_trainer.telling.report import Reporter


class Killed(BaseException):
    """The attempt is dead, and does not know it: no handler of errors may keep it alive."""


def say_nothing_of_the_dead() -> None:
    """Let threads that are killed end without a word."""
    say = threading.excepthook

    def quiet(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, Killed):
            say(arguments)

    threading.excepthook = quiet


def before_each_request(bucket: Bucket, call: Callable[[str, str], None]) -> None:
    """Let *call* be called, with method and URL, before a request of *bucket* goes out; it may raise Killed."""

    def before_send(request: Any, **_: Any) -> None:
        call(request.method, request.url)

    for client in (bucket._client, bucket._once):
        client.meta.events.register("before-send.s3", before_send)


class End(Ending):
    """Ends the generation, not the process."""

    failure: Failure | None = None

    def fail(self, failure: Failure) -> NoReturn:
        self.failure = self.failure or failure
        raise SystemExit

    def finish(self, code: int, **_: Any) -> NoReturn:
        raise AssertionError("only attempts of a process of their own end so")


class MortalSaver(Saver):
    """Its thread ends with the generation."""

    def __init__(self, *arguments: Any, **members: Any) -> None:
        self.ended = threading.Event()
        super().__init__(*arguments, **members)

    def _work(self) -> None:
        with contextlib.suppress(SystemExit, Killed):
            super()._work()
        self.ended.set()


class Voice(Reporter):
    """Keeps what is told, and prints nothing."""

    def __init__(self, **members: Any) -> None:
        self.durable: list[int] = []
        super().__init__(**members)

    def tell(self, type_: EventType, step: int, **members: Any) -> None:
        if type_ is EventType.CHECKPOINT:
            self.durable.append(step)

    def _write(self, *_: Any, **__: Any) -> None:
        pass
