"""Where the attempts of all runs are, and what they have learned of the pools: the operator's part, kept cheap.

The same facts as ``lorafinetune.places`` has from pods and statuses of a cluster; the learning is the engine's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine import news
from lorafinetune.engine.fleet import Fleet, PoolKnown
from lorafinetune.engine.observation import PodSeen


@dataclass(slots=True)
class Census:
    """What all runs together know of the pools."""

    fleet: dict[str, PoolKnown] = field(default_factory=dict)
    _learned: Fleet = field(default_factory=dict)
    _live: dict[str, set[str]] = field(default_factory=dict)
    _waiting: dict[str, set[str]] = field(default_factory=dict)

    def learn(self, before: LoRAFineTuneStatus, after: LoRAFineTuneStatus, now: float) -> None:
        """Take what a run's change of status tells of the pools."""
        learned = news.fold(self._learned, before, after, now)
        changed = [name for name, known in learned.items() if known is not self._learned.get(name)]
        self._learned = learned
        for name in changed:
            self._tell(name)

    def count(self, pod: PodSeen) -> bool:
        """Count a pod that has changed; return whether it gave up its place in its pool."""
        live = self._live.setdefault(pod.pool, set())
        waiting = self._waiting.setdefault(pod.pool, set())
        was = (pod.uid in live, pod.uid in waiting)
        now = (not pod.is_over, not pod.is_over and pod.node is None)
        if was == now:
            return False
        for members, is_in in zip((live, waiting), now, strict=True):
            if is_in:
                members.add(pod.uid)
            else:
                members.discard(pod.uid)
        self._tell(pod.pool)
        return was[0] and not now[0]

    def _tell(self, pool: str) -> None:
        live, waiting = self._live.get(pool, ()), self._waiting.get(pool, ())
        known = self._learned.get(pool, PoolKnown())
        self.fleet[pool] = replace(known, live=len(live), waiting=len(waiting))
