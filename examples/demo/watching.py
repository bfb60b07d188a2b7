"""Follows the run: kubectl's own table for people, and every status for the demo, both by `kubectl get -w`."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from examples.demo.account import Moment
from examples.demo.children import Child
from examples.demo.error import DemoError
from examples.demo.scene import Scene

LOOK = 1.0
"""Seconds after which a condition is looked at again although nothing came."""


class Watching:
    """The run as it goes: `moments` holds each status with the time at which it was seen."""

    def __init__(self, scene: Scene, name: str) -> None:
        kubectl = scene.kubectl_command("get", "lft", name, "-w")
        errors = scene.folder / "logs" / "watch.log"
        self._screen, self._last = scene.screen, ""
        self._table = Child(kubectl, on_line=self._show, errors=errors)
        self._states = Child([*kubectl, "-o", "jsonpath={.status}{'\\n'}"], on_line=self._take, errors=errors)
        self._news = threading.Condition()
        self._open = contextlib.ExitStack()
        self.moments: list[Moment] = []

    def __enter__(self) -> Self:
        self._open.enter_context(self._states)
        self._open.enter_context(self._table)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def _show(self, line: str) -> None:
        if line != self._last:  # kubectl writes a row for every change, also for those that no column shows
            self._last = line
            self._screen.row(line)

    def _take(self, line: str) -> None:
        now = time.monotonic()
        with contextlib.suppress(ValueError), self._news:
            self.moments.append(Moment(now, json.loads(line)))
            self._news.notify_all()

    @property
    def status(self) -> dict[str, Any]:
        """The newest status; empty before the first."""
        return dict(self.moments[-1].status) if self.moments else {}

    def until(self, what: str, check: Callable[[], Any], seconds: float) -> Any:
        """Return *check*'s first true answer. Raises DemoError when the run fails, or after *seconds*."""
        deadline = time.monotonic() + seconds
        while True:
            with self._news:
                answer = check()
                status = self.status
                if not answer and status.get("phase") != "Failed":
                    self._news.wait(min(LOOK, max(0.0, deadline - time.monotonic())))
            if answer:
                return answer
            if status.get("phase") == "Failed":
                raise DemoError(f"the run failed: {status.get('message')}")
            if not self._states.running:
                raise DemoError(f"kubectl no longer watches the run, while the demo waited {what}")
            if time.monotonic() > deadline:
                last = status.get("message") or "it has no status yet"
                raise DemoError(f"the demo waited {seconds:.0f} s {what}, in vain; the run says: {last}")
