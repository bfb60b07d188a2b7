"""One request, judged: the checks in their order, cheapest first, none of which changes anything.

1. content type and size; 2. are we ready; 3. who speaks; 4. how often; 5. is it an event; 6. of a run that we have;
7. of its current attempt; 8. hand it over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from lorafinetune.contract.event import MAX_EVENT_BYTES, Event
from lorafinetune.ratelimit import RateLimit
from lorafinetune.receiver.authenticate import Authenticator, Identity, NoAnswer, Review, TooMany, Unauthenticated
from lorafinetune.receiver.verdict import Result, Verdict

BODY_SECONDS: Final = 10.0
POD_RATE: Final = (5.0, 50)
"""Events a second in the long run, and at once, of one pod: a trainer sends one or two a second."""
NAMESPACE_RATE: Final = (100.0, 500)
BUSY_SECONDS: Final = 1.0
MAX_MESSAGE: Final = 512


@dataclass(frozen=True, slots=True)
class Current:
    """What the operator knows of a run: where it lives, and which attempt may speak."""

    namespace: str
    attempt: int
    """0: none has begun."""
    pod_uid: str | None
    """None: no pod of the attempt is known (any more)."""


class Delivery(Enum):
    """What became of an event that was handed over."""

    ACCEPTED = auto()
    STALE = auto()
    """A repeat, or behind what is known."""
    BUSY = auto()
    """There is no room for it now."""


class Judge:
    """Decides on requests. *current* and *deliver* must not block; *ready* says whether they can answer."""

    def __init__(
        self,
        *,
        review: Review,
        current: Callable[[str], Current | None],
        deliver: Callable[[Event], Delivery],
        ready: Callable[[], bool],
        pods: RateLimit | None = None,
        namespaces: RateLimit | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        self._authenticator = authenticator or Authenticator(review)
        self._current = current
        self._deliver = deliver
        self._ready = ready
        self._pods = pods or RateLimit(*POD_RATE)
        self._namespaces = namespaces or RateLimit(*NAMESPACE_RATE)

    async def judge(self, request: web.Request) -> Verdict:
        """Return the verdict on a POST of an event."""
        try:
            body = await _read(request)
            if not self._ready():
                raise _Refusal(Result.NOT_READY, "the operator is starting, or another replica leads", BUSY_SECONDS)
            speaker = await self._identify(request)
            self._limit(speaker)
            event = _parse(body)
            self._place(speaker, event)
        except _Refusal as refusal:
            return refusal.verdict
        match self._deliver(event):
            case Delivery.ACCEPTED:
                return Verdict(Result.ACCEPTED, "accepted")
            case Delivery.STALE:
                return Verdict(Result.STALE, "known already")
            case Delivery.BUSY:
                return Verdict(Result.NOT_READY, "too many events are waiting", BUSY_SECONDS)

    async def _identify(self, request: web.Request) -> Identity:
        try:
            return await self._authenticator.identify(request.headers.get("Authorization"), request.remote)
        except Unauthenticated as error:
            raise _Refusal(Result.UNAUTHENTICATED, str(error)) from error
        except TooMany as error:
            raise _Refusal(Result.LIMITED, str(error), error.wait) from error
        except NoAnswer as error:
            raise _Refusal(Result.NOT_READY, str(error), BUSY_SECONDS) from error

    def _limit(self, speaker: Identity) -> None:
        if wait := self._pods.take(speaker.pod_uid):
            raise _Refusal(Result.LIMITED, "this pod sends too many events: send the latest only", wait)
        if wait := self._namespaces.take(speaker.namespace):
            raise _Refusal(Result.LIMITED, f"the pods of namespace {speaker.namespace} send too many events", wait)

    def _place(self, speaker: Identity, event: Event) -> None:
        """Refuse what is not said by the run's current attempt."""
        current = self._current(event.run_uid)
        if current is None:
            raise _Refusal(Result.GONE, "there is no such run: it was deleted, or belongs to another cluster")
        if speaker.namespace != current.namespace:
            raise _Refusal(Result.FORBIDDEN, "the run is not in the namespace of your pod")
        if event.attempt < current.attempt:
            raise _Refusal(
                Result.FENCED, f"attempt {event.attempt} was replaced by attempt {current.attempt}: stop and exit"
            )
        if event.attempt > current.attempt or speaker.pod_uid != current.pod_uid:
            raise _Refusal(Result.FORBIDDEN, f"pod {speaker.pod_name} does not run the current attempt of the run")


class _Refusal(Exception):  # noqa: N818 - a verdict on its way out
    def __init__(self, result: Result, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.verdict = Verdict(result, message, retry_after)


async def _read(request: web.Request) -> bytes:
    """Return the body, of MAX_EVENT_BYTES at most, within BODY_SECONDS."""
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise _Refusal(Result.UNSUPPORTED, "send Content-Type: application/json, not compressed")
    too_large = _Refusal(Result.TOO_LARGE, f"an event has {MAX_EVENT_BYTES} bytes at most")
    if (request.content_length or 0) > MAX_EVENT_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > MAX_EVENT_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise _Refusal(Result.MALFORMED, f"the body did not come within {BODY_SECONDS:g} s") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise _Refusal(Result.MALFORMED, "the body broke off") from error
    return bytes(body)


def _parse(body: bytes) -> Event:
    try:
        return Event.model_validate_json(body)
    except ValidationError as error:
        raise _Refusal(Result.MALFORMED, _sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    return f"no event: {where}: {first['msg']}"[:MAX_MESSAGE]
