"""Where the attempts of all runs are, and what they have learned of the pools: told as news comes, asked in every pass.

What it costs does not grow with the number of runs. Nothing of it need be kept: statuses and pods tell it anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from lorafinetune.api.status import AttemptStatus, LoRAFineTuneStatus
from lorafinetune.engine import news
from lorafinetune.engine.decision import CreatePod, Decision, RemoveFinalizer
from lorafinetune.engine.fleet import Fleet, PoolKnown, forget
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.pools import places
from lorafinetune.kube import seen
from lorafinetune.kube.pods import is_ours, pod_name
from lorafinetune.kube.store import Change, Key, Store, key_of
from lorafinetune.kube.stores import NamespacedStore

Object = dict[str, Any]

HOLDERS: Final = 3
"""Pods of those that take a pool's places which people are told by name."""
_ATTEMPTS = TypeAdapter(list[AttemptStatus])


def filed(pod: Object) -> list[str]:
    """Return under what a store of pods is to file one: the UID of the run that its label names, true or not."""
    return [pod["metadata"]["labels"][seen.LABEL_RUN_UID]]


@dataclass(frozen=True, slots=True)
class _Taken:
    """The place in a pool that a pod takes."""

    pool: str
    key: Key
    waits: bool


class Places:
    """What all runs together know of the pools.

    A place is taken by a pod that is an attempt of a run which is there, until its end is written down: not by what
    anybody may label, nor by the dead pod of a lost node, which stays for as long as its node does.
    """

    def __init__(self, pods: NamespacedStore, runs: Store) -> None:
        """*runs* is filed by UID, *pods* as :func:`filed` says."""
        self._pods = pods
        self._runs = runs
        self._fleet: Fleet = {}
        self._taken: dict[str, tuple[_Taken, ...]] = {}
        """The places of each run that has any."""
        self._live: dict[str, dict[Key, None]] = {}
        """The pods that take the places of each pool, the first to come first."""
        self._waiting: dict[str, int] = {}
        """How many of them have no node yet."""
        self._kept: dict[str, tuple[str, str, str]] = {}
        """Pool, pod and namespace of each run's attempt that is being made."""
        self._queue: dict[str, frozenset[str]] = {}
        """Runs that wait for room, the first to come first, and the pools that they may use."""

    def begin(self, runs: Iterable[Object], now: float) -> None:
        """Learn from pods and statuses of all runs what was learned before this operator began."""
        found = list(runs)
        self._fleet = news.recall((status for run in found if (status := _attempts(run)) is not None), now)
        for run in found:
            self.changed(run["metadata"]["uid"])

    def changed(self, uid: str) -> str | None:
        """Look at a run that has changed, or whose pods have; return who has waited longest for a place thus freed."""
        before, now = self._taken.pop(uid, ()), self._places_of(uid)
        if now:
            self._taken[uid] = now
        if before == now:
            return None
        for one in before:
            if one not in now:
                self._leave(one)
        for one in now:
            if one not in before:
                self._live.setdefault(one.pool, {})[one.key] = None
                self._waiting[one.pool] = self._waiting.get(one.pool, 0) + one.waits
        freed = (Counter(one.pool for one in before) - Counter(one.pool for one in now)).keys()
        if not freed or not self._queue:
            return None
        return next((waiter for waiter, pools in self._queue.items() if not freed.isdisjoint(pools)), None)

    def _places_of(self, uid: str) -> tuple[_Taken, ...]:
        run = next(iter(self._runs.indexed(uid)), None)
        if run is None:
            return ()
        about, is_booked = seen.run_seen(run), seen.booked(run)
        return tuple(
            _Taken(seen.pool_of(pod), key_of(pod), seen.waits(pod))
            for pod in self._pods.indexed(uid)
            if not seen.is_over(pod) and is_ours(pod, about) and not is_booked(pod)
        )

    def _leave(self, place: _Taken) -> None:
        there = self._live[place.pool]
        there.pop(place.key, None)
        self._waiting[place.pool] -= place.waits
        if not there:
            del self._live[place.pool], self._waiting[place.pool]

    def fleet(self, pools: Iterable[str]) -> Fleet:
        """Return what is known of those pools now."""
        making: dict[str, list[Key]] = {}
        for uid, (pool, name, namespace) in list(self._kept.items()):
            if self._pods.get(name, namespace) is not None:
                del self._kept[uid]  # its pass may yet wait long for its status to be written
                self.changed(uid)
                continue
            making.setdefault(pool, []).append((namespace, name))
        found = {}
        for pool in pools:
            made, soon = self._live.get(pool, {}), making.get(pool, [])
            known = self._fleet.get(pool)
            if known is not None or made or soon:
                holders = tuple(f"{space}/{name}" for space, name in islice(chain(made, soon), HOLDERS))
                live, waiting = len(made) + len(soon), self._waiting.get(pool, 0)
                found[pool] = replace(known or PoolKnown(), live=live, waiting=waiting, holders=holders)
        return found

    @contextmanager
    def kept(self, seen_now: Observation, decision: Decision) -> Iterator[None]:
        """Keep the place of the attempt that *decision* makes until its pod is there: another pass may not take it.

        What the decision tells of pools is learned once it has been carried out.
        """
        run = seen_now.run
        for action in decision.actions:
            if isinstance(action, CreatePod):
                self._kept[run.uid] = (action.pool, pod_name(run, action.attempt), run.namespace)
        try:
            yield
        finally:
            self._kept.pop(run.uid, None)
        if decision.reason == "PoolFull":
            self._queue.setdefault(run.uid, places(seen_now))
        else:
            self._queue.pop(run.uid, None)
        if not any(isinstance(action, RemoveFinalizer) for action in decision.actions):
            self._fleet = news.fold(self._fleet, seen_now.status, decision.status, seen_now.now)

    def gone(self, run: Object, now: float) -> None:
        """Forget a run that is gone: its attempts have no nodes any more."""
        self._queue.pop(run["metadata"]["uid"], None)
        status = _attempts(run)
        if status is not None:
            self._fleet = news.fold(self._fleet, status, None, now)

    def pool_changed(self, change: Change) -> bool:
        """Whether the pool itself has changed; its drought and its takes are then another pool's."""
        before, after = (one["spec"] if one is not None else None for one in (change.old, change.new))
        if before == after:
            return False
        self._fleet = forget(self._fleet, change.key[1])
        return True


def _attempts(run: Object) -> LoRAFineTuneStatus | None:
    """Return as much of a run's status as tells of pools; None if that is nothing, or cannot be read."""
    found = (run.get("status") or {}).get("attempts")
    if not found:
        return None
    try:
        return LoRAFineTuneStatus(attempts=_ATTEMPTS.validate_python(found))
    except ValidationError:
        return None
