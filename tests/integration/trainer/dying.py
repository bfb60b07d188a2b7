"""The in-process kill: an attempt that is dead gets nothing out any more, and each of its threads ends when it tries.

What a process that was killed leaves behind is what it has sent. So whoever ends an attempt at each of its requests has
ended it everywhere, without a process of its own for each case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lorafinetune.storage.bucket import Bucket


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
