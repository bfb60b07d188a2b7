"""Who speaks: cheap checks of the token first, then the API server's word, remembered for a short while.

A projected service-account token names its pod. The API server signs it, and no longer accepts it once the pod is gone.
Whether that pod may speak for a run is not decided here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from lorafinetune.contract.event import AUDIENCE
from lorafinetune.ratelimit import RateLimit

REMEMBER_SECONDS: Final = 60.0
"""How long a pod that is gone may still be believed; the attempt number fences it before that."""
REMEMBER_REFUSED_SECONDS: Final = 10.0
"""As the API server itself: it asks no authenticator twice within 10 s."""
MAX_REMEMBERED: Final = 4096
MAX_REVIEWS: Final = 16
"""Reviews at once; more wait, and no longer than ``REVIEW_SECONDS``."""
REVIEW_SECONDS: Final = 10.0
ADDRESS_RATE: Final = (5.0, 50)
"""Reviews a second in the long run, and at once, that one address may cause: a pod needs one a minute."""
TOTAL_RATE: Final = (100.0, 1000)
"""Those that all may cause: forged tokens are cheap, and each costs the API server a review."""
MAX_TOKEN: Final = 8 * 1024
CLOCK_SKEW: Final = 30.0
"""Seconds by which our clock may be ahead of the API server's; the API server has the last word anyway."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The pod that holds the token."""

    namespace: str
    service_account: str
    pod_name: str
    pod_uid: str


Review = Callable[[str], Awaitable[Identity | None]]
"""The API server's word on a token of our audience: None if it is not good. Raises when it cannot be asked."""


class Unauthenticated(Exception):  # noqa: N818 - a fact
    """The token proves nothing; the message says why and never holds any of it."""


class NoAnswer(Exception):  # noqa: N818 - a fact
    """The API server could not be asked in time."""


class TooMany(Exception):  # noqa: N818 - a fact
    """Too many unknown tokens come from one address, or from all; ``wait`` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("too many unknown tokens")
        self.wait = wait


class Authenticator:
    """Turns the Authorization header into an identity."""

    def __init__(
        self,
        review: Review,
        *,
        clock: Callable[[], float] = time.time,
        addresses: RateLimit | None = None,
        total: RateLimit | None = None,
    ) -> None:
        self._review = review
        self._clock = clock
        self._addresses = addresses or RateLimit(*ADDRESS_RATE)
        self._total = total or RateLimit(*TOTAL_RATE)
        self._slots = asyncio.Semaphore(MAX_REVIEWS)
        self._remembered: OrderedDict[bytes, tuple[float, Identity | None]] = OrderedDict()
        """Token hash to (Unix seconds until when, verdict)."""

    async def identify(self, header: str | None, address: str | None) -> Identity:
        """Return who holds the bearer token of *header*, sent from *address*.

        Raises Unauthenticated, TooMany or NoAnswer.
        """
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("send the pod's projected token as Authorization: Bearer <token>")
        expires = check_claims(token, self._clock())
        digest = hashlib.sha256(token.encode()).digest()
        found = self._recall(digest)
        if found is None:
            if wait := self._addresses.take(address) or self._total.take(None):
                raise TooMany(wait)
            found = (await self._ask(token),)
            keep = REMEMBER_SECONDS if found[0] else REMEMBER_REFUSED_SECONDS
            self._remember(digest, min(self._clock() + keep, expires), found[0])
        if found[0] is None:
            raise Unauthenticated("the API server does not accept the token: is it of this cluster, is its pod alive?")
        if not found[0].pod_uid:
            raise Unauthenticated("the token is bound to no pod: project it into the pod, do not create it by hand")
        return found[0]

    async def _ask(self, token: str) -> Identity | None:
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._slots:
                return await self._review(token)
        except Exception as error:
            raise NoAnswer(f"the token could not be reviewed: {type(error).__name__}") from error

    def _recall(self, digest: bytes) -> tuple[Identity | None] | None:
        until, identity = self._remembered.get(digest, (0.0, None))
        return (identity,) if self._clock() < until else None

    def _remember(self, digest: bytes, until: float, identity: Identity | None) -> None:
        self._remembered.pop(digest, None)
        self._remembered[digest] = (until, identity)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)


def check_claims(token: str, now: float) -> float:
    """Return when the JWT expires (Unix seconds), if it has the shape, our audience, and time left at *now*.

    Proves nothing, since no signature is checked: it keeps what cannot be good from the API server. Raises
    Unauthenticated.
    """
    parts = token.split(".")
    if len(token) > MAX_TOKEN or len(parts) != 3:
        raise Unauthenticated("the token is no JWT: send the pod's projected service-account token")
    _decode(parts[0])
    claims = _decode(parts[1])
    audiences = claims.get("aud")
    if audiences != AUDIENCE and not (isinstance(audiences, list) and AUDIENCE in audiences):
        raise Unauthenticated(f"the token is not for us: its audience must be {AUDIENCE}")
    expires = claims.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float) or expires + CLOCK_SKEW <= now:
        raise Unauthenticated("the token has expired: read the token file again for each event")
    return float(expires)


def _decode(part: str) -> dict[str, Any]:
    try:
        decoded = json.loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as error:
        raise Unauthenticated("the token is no JWT: a part is not base64url of JSON") from error
    if not isinstance(decoded, dict):
        raise Unauthenticated("the token is no JWT: a part is not a JSON object")
    return decoded
