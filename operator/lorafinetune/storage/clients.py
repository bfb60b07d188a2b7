"""The operator's S3 clients, one for each endpoint and identity: making one costs 0.1 s of CPU and 13 MiB.

Bounded: those not used for longest are dropped, and with them what their runs' Secrets once said.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from lorafinetune.contract.layout import Location
from lorafinetune.storage.bucket import Bucket, Credentials

MAX_CLIENTS: Final = 64
ATTEMPTS: Final = 3
"""Tries of a request: the loop tries again anyway, and says so."""

Key = tuple[str | None, str | None, Credentials | None]


class Clients:
    """Opens buckets through clients that are shared. Safe to use from several threads."""

    def __init__(self, limit: int = MAX_CLIENTS) -> None:
        self._limit = limit
        self._made: OrderedDict[Key, Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._made)

    def open(
        self, location: Location, *, endpoint: str | None, region: str | None, credentials: Credentials | None
    ) -> Bucket:
        """Return the place *location* at that endpoint, as that identity."""
        key = (endpoint, region, credentials)
        with self._lock:
            # Made under the lock: sessions are not safe to make side by side, and twenty runs want the same one.
            made = self._made.pop(key, None)
            if made is None:
                made = Bucket(location, endpoint=endpoint, region=region, credentials=credentials, attempts=ATTEMPTS)
            self._made[key] = made
            if len(self._made) > self._limit:
                self._made.popitem(last=False)
        return made.at(location)
