"""How many nodes attempts are on, and how many of those are silent: counted as news comes, never by going through all.

What is asked of it costs the same for ten nodes and for ten thousand.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from typing import Any, Final

from lorafinetune.engine.observation import ClusterSeen
from lorafinetune.engine.silence import RECENT, SETTLING
from lorafinetune.kube import seen
from lorafinetune.kube.store import Change, Key, key_of

Object = dict[str, Any]

FLAPPING: Final = 300.0
"""Seconds within which a view that breaks again does not count as broken anew: else a watch that never holds for long
would hold every replacement for ever."""


class Census:
    """Fed with every change of pods and nodes."""

    def __init__(self, node: Callable[[str], Object | None], clock: Callable[[], float]) -> None:
        self._node = node
        self._clock = clock
        self._node_of: dict[Key, str] = {}
        self._pods_on: dict[str, set[Key]] = {}
        self._silent: dict[str, float] = {}
        """Since when each silent node with attempts has been so."""
        self._since: list[float] = []
        """Those times, sorted."""
        self._back: dict[str, float] = {}
        """When each node that was silent lately was heard again, in that order."""
        self._unbroken_since = float("-inf")

    def begin(self, pods: Iterable[Object]) -> None:
        """Take in *pods*, which nobody told of, and count our view as whole from now on."""
        self._unbroken_since = self._clock()
        for pod in pods:
            self._place(key_of(pod), _node_of(pod))

    def pod_changed(self, change: Change) -> None:
        """Take news of an attempt's pod."""
        self._place(change.key, _node_of(change.new) if change.new is not None else None)

    def node_changed(self, name: str) -> None:
        """Look at a node that has changed, come or gone."""
        if name in self._pods_on:
            self._judge(name)

    def pods_on(self, name: str) -> list[Key]:
        """Return the pods whose trainer may run on that node."""
        return list(self._pods_on.get(name, ()))

    def cluster(self, resumed_at: float) -> ClusterSeen:
        """Return what is counted; *resumed_at* is when the last break of a watch was over, Unix seconds."""
        if resumed_at - self._unbroken_since >= FLAPPING:
            self._unbroken_since = resumed_at
        now = self._clock()
        while self._back and (first := next(iter(self._back.items())))[1] <= now - SETTLING:
            del self._back[first[0]]
        # They come back one after another: what was silent with them is given the same time to.
        recent = len(self._since) - bisect.bisect_left(self._since, now - RECENT) + len(self._back)
        return ClusterSeen(unbroken_since=self._unbroken_since, nodes=len(self._pods_on), silent=recent)

    def _place(self, key: Key, node: str | None) -> None:
        before = self._node_of.get(key)
        if before == node:
            return
        if before is not None:
            del self._node_of[key]
            there = self._pods_on[before]
            there.discard(key)
            if not there:
                del self._pods_on[before]
                self._back.pop(before, None)
                self._hear(before)
        if node is not None:
            self._node_of[key] = node
            self._pods_on.setdefault(node, set()).add(key)
            self._judge(node)

    def _judge(self, name: str) -> None:
        found = self._node(name)
        known = seen.node_seen(found) if found is not None else None
        if known is not None and known.ready:
            since, now = self._hear(name), self._clock()
            if since is not None and since > now - RECENT:
                self._back[name] = now
        elif name not in self._silent:
            self._back.pop(name, None)
            since = known.not_ready_since if known is not None else None
            self._silent[name] = since = since if since is not None else self._clock()
            bisect.insort(self._since, since)

    def _hear(self, name: str) -> float | None:
        """Count *name* as silent no more; return since when it was, if it was."""
        since = self._silent.pop(name, None)
        if since is not None:
            del self._since[bisect.bisect_left(self._since, since)]
        return since


def _node_of(pod: Object) -> str | None:
    """Return the node on which the pod's trainer may run."""
    over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    name: str | None = pod.get("spec", {}).get("nodeName")
    return None if over else name
