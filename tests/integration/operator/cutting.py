"""An operator that dies: a coroutine cut at a chosen suspension, requests that fail before or after their effect."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from enum import Enum, auto
from typing import Any

from lorafinetune.kube import errors
from lorafinetune.kube.client import Cluster


class Killed(BaseException):
    """The process ends here. Nothing of ours catches it."""


class Fault(Enum):
    """What becomes of one request."""

    KILLED_BEFORE = auto()
    KILLED_AFTER = auto()
    CONFLICT = auto()
    """409, without effect."""
    GONE = auto()
    """410, without effect."""
    BROKEN = auto()
    """500, without effect."""
    UNANSWERED = auto()
    """It takes effect, and the answer is lost: a timeout."""


KILLS = (Fault.KILLED_BEFORE, Fault.KILLED_AFTER)
ERRORS = (Fault.CONFLICT, Fault.GONE, Fault.BROKEN, Fault.UNANSWERED)

Plan = Callable[[int, str, str, Any], Fault | None]
"""From a request's number (1, 2, 3 ...), method, path and body to what goes wrong with it."""


class EachInTurn:
    """The plan by which every different write of a life suffers each of *faults* once, and succeeds from then on."""

    def __init__(self, *faults: Fault) -> None:
        self._faults = faults
        self._suffered: Counter[tuple[str, str, str]] = Counter()
        self.played: Counter[Fault] = Counter()

    def __call__(self, _number: int, method: str, path: str, body: Any) -> Fault | None:
        if method == "GET":
            return None
        write = (method, path, _news(body))
        count = self._suffered[write]
        self._suffered[write] += 1
        if count >= len(self._faults):
            return None
        self.played[self._faults[count]] += 1
        return self._faults[count]


def _news(body: Any) -> str:
    """Return what a write is for, so that its repetition after a restart counts as the same."""
    if isinstance(body, list):
        return str([one["value"] for one in body if one["op"] == "add"])
    status = (body or {}).get("status") or {}
    return f"{status.get('phase')} {status.get('activity')} {status.get('attempt')}"


class Unreliable(Cluster):
    """The operator's hands on a real API server, as *plan* lets them succeed."""

    def __init__(self, over: Cluster, plan: Plan) -> None:
        super().__init__(over._api)
        self.plan = plan
        self.requests = 0
        self.kills = 0
        """How often the operator was killed in a request, be it of its loop or of a task beside it."""

    async def _once(self, method: str, path: str, query: dict[str, str] | None, body: Any, content_type: str) -> Any:
        self.requests += 1
        fault = self.plan(self.requests, method, path, body)
        match fault:
            case Fault.KILLED_BEFORE:
                self.kills += 1
                raise Killed
            case Fault.CONFLICT:
                raise errors.Conflict("played: the object has been modified", status=409, reason="Conflict")
            case Fault.GONE:
                raise errors.Gone("played: too old resource version", status=410, reason="Expired")
            case Fault.BROKEN:
                raise errors.Unavailable("played: etcdserver: leader changed", status=500)
        answer = await super()._once(method, path, query, body, content_type)
        if fault is Fault.KILLED_AFTER:
            self.kills += 1
            raise Killed
        if fault is Fault.UNANSWERED:
            raise errors.Unavailable("played: no answer within the limit")
        return answer


@types.coroutine
def cut(coroutine: Coroutine[Any, Any, Any], at: int) -> Generator[Any, Any, int]:
    """Run *coroutine* until its *at*-th suspension and close it there; return how often it was suspended.

    Fewer than *at* means that it came to its end.
    """
    suspended, error = 0, None
    while True:
        try:
            waits_for = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration:
            return suspended
        suspended += 1
        if suspended == at:
            coroutine.close()
            return suspended
        error = None
        try:
            yield waits_for
        except Exception as raised:
            error = raised
