"""Token buckets by key, bounded in number: who may do how much how often, be it webhook events or Kubernetes events."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

MAX_KEYS: Final = 10_000


class RateLimit:
    """Each key may do *burst* things at once and *rate* a second in the long run.

    At most *keys* are remembered, the longest unused forgotten first: a forgotten one has its burst again.
    """

    def __init__(
        self, rate: float, burst: int, *, keys: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._keys = keys
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Key to (tokens, when they were counted)."""

    def take(self, key: Hashable) -> float:
        """Take one token of *key*; return 0.0, or, if there is none, the seconds until there is one."""
        now = self._clock()
        tokens, counted = self._buckets.pop(key, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - counted) * self._rate)
        wait = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate
        self._buckets[key] = (tokens if wait else tokens - 1.0, now)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return wait
