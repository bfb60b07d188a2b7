"""One leader at a time, by Lease: acquire, renew, and say at once when it is lost.

The official ``kubernetes.aio.leaderelection`` measures with the wall clock, waits five minutes for a request while its
lease runs out, ends with a connection error of the API server instead of trying again, and never releases; so this is
our own. Like every Lease it cannot fence: an old leader that was stopped in the middle of a request may still send
it. What may not happen twice is kept so by names, UIDs and the head.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from lorafinetune.kube.client import LEASES, Cluster
from lorafinetune.kube.errors import AlreadyExists, ClusterError, Conflict

LEASE_SECONDS: Final = 8
"""How long others wait after they last saw the lease renewed."""
RENEW_SECONDS: Final = 5.0
"""How long a leader may fail to renew before it must stop leading: well before others begin."""
RETRY_SECONDS: Final = 1.0
RELEASE_SECONDS: Final = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """The times of an election, in seconds; *renew* must be shorter than *lease*, and longer than *retry*."""

    lease: int = LEASE_SECONDS
    renew: float = RENEW_SECONDS
    retry: float = RETRY_SECONDS


class Candidate:
    """One process that wants the lease *namespace/name*. The same *identity* after a restart has it back at once."""

    def __init__(
        self, cluster: Cluster, *, namespace: str, name: str, identity: str, terms: Terms | None = None
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._terms = terms or Terms()
        self._lease: dict[str, Any] | None = None
        """As last read or written."""
        self._renewed_at = 0.0
        """Monotonic seconds when the latest write that took effect was sent: the server may have taken it as early."""
        self._seen_version = ""
        self._seen_at = 0.0
        """Monotonic seconds when another's lease was last seen to change."""

    async def acquire(self) -> None:
        """Return once the lease is held; errors of the API server only delay it."""
        while True:
            try:
                async with asyncio.timeout(self._terms.renew):
                    if await self._try():
                        _log.info("%s leads", self._identity)
                        return
            except (ClusterError, TimeoutError) as error:
                _log.warning("lease %s cannot be had: %s", self._name, str(error) or "no answer in time")
            await asyncio.sleep(self._terms.retry * random.uniform(0.8, 1.2))

    async def keep(self) -> str:
        """Renew the lease; return why it is lost, once it is, at most ``terms.renew`` after the last renewal."""
        while True:
            await asyncio.sleep(self._terms.retry)
            left = self._renewed_at + self._terms.renew - time.monotonic()
            if left <= 0:
                return f"the lease was not renewed for {self._terms.renew:g} s"
            try:
                async with asyncio.timeout(left):
                    if not await self._try():
                        return f"the lease is held by {self._holder()!r}"
            except (ClusterError, TimeoutError) as error:
                _log.warning("lease %s was not renewed: %s", self._name, str(error) or "no answer in time")

    async def release(self) -> None:
        """Give the lease back, if it is ours, so that the next leader need not wait. Best effort."""
        with contextlib.suppress(ClusterError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                self._lease = await self._cluster.get(LEASES, self._name, self._namespace)
                if self._lease is not None and self._holder() == self._identity:
                    await self._write({"holderIdentity": "", "leaseDurationSeconds": 1})
                    _log.info("%s gave the lease back", self._identity)

    async def _try(self) -> bool:
        """Write the lease as ours, if it is ours or free; return whether it is ours. Raises ClusterError."""
        if self._lease is None or self._holder() != self._identity:
            self._lease = await self._cluster.get(LEASES, self._name, self._namespace)
        if not self._is_free():
            return False
        sent = time.monotonic()
        try:
            await self._take()
        except (AlreadyExists, Conflict):
            # Written by another since we read it, or by a request of ours whose answer was lost.
            self._lease = await self._cluster.get(LEASES, self._name, self._namespace)
            if not self._is_free():
                return False
            sent = time.monotonic()
            await self._take()
        self._renewed_at = sent
        return True

    async def _take(self) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._terms.lease,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        }
        if self._lease is None:
            body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": self._name}, "spec": spec}
            self._lease = await self._cluster.create(LEASES, body, self._namespace)
            return
        before = self._lease.get("spec") or {}
        ours = before.get("holderIdentity") == self._identity
        spec["acquireTime"] = before.get("acquireTime", now) if ours else now
        spec["leaseTransitions"] = before.get("leaseTransitions", 0) + (0 if ours else 1)
        await self._write(spec)

    async def _write(self, spec: dict[str, Any]) -> None:
        """Write the spec over the very lease that was read. Raises Conflict if it is another by now."""
        assert self._lease is not None
        version = self._lease["metadata"]["resourceVersion"]
        written = await self._cluster.json_patch(
            LEASES,
            self._name,
            self._namespace,
            [
                {"op": "test", "path": "/metadata/resourceVersion", "value": version},
                {"op": "add", "path": "/spec", "value": (self._lease.get("spec") or {}) | spec},
            ],
        )
        if written is None:
            raise Conflict(f"lease {self._name} was deleted")
        self._lease = written

    def _holder(self) -> str:
        return ((self._lease or {}).get("spec") or {}).get("holderIdentity") or ""

    def _is_free(self) -> bool:
        """Return whether the lease is ours, nobody's, or unchanged for its whole time, as measured by our own clock."""
        holder = self._holder()
        if self._lease is None or holder in ("", self._identity):
            return True
        version = self._lease["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, time.monotonic()
            _log.debug("%s waits for %s", self._identity, holder)
        lasts = (self._lease["spec"].get("leaseDurationSeconds")) or self._terms.lease
        return time.monotonic() - self._seen_at > lasts


async def lead(
    cluster: Cluster,
    *,
    namespace: str,
    name: str,
    identity: str,
    on_started: Callable[[], Awaitable[None]],
    on_lost: Callable[[str], None],
    on_leading: Callable[[bool], None] | None = None,
    terms: Terms | None = None,
) -> None:
    """Wait for the lease, then run *on_started* while it is held; give it back when that returns or we are cancelled.

    When the lease is lost, *on_lost* is called with the reason and must end the process at once: nothing that it could
    still do as a leader is safe. Should it return, what runs is cancelled and ClusterError raised. *on_leading* hears
    each change.
    """
    candidate = Candidate(cluster, namespace=namespace, name=name, identity=identity, terms=terms)
    tell = on_leading or (lambda _leading: None)
    await candidate.acquire()
    tell(True)
    lost = ""
    work = asyncio.ensure_future(on_started())
    keeping = asyncio.create_task(candidate.keep())
    try:
        await asyncio.wait((work, keeping), return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            lost = keeping.result()
            tell(False)
            _log.error("%s no longer leads: %s", identity, lost)
            on_lost(lost)
            raise ClusterError(f"{identity} no longer leads: {lost}")
        await work
    finally:
        for task in (work, keeping):
            task.cancel()
        await asyncio.gather(work, keeping, return_exceptions=True)
        if not lost:
            tell(False)
            await candidate.release()
