"""What the cluster holds, as last heard: filled by a reflector, read by the loop, told of the loop's own writes.

It is never older than our own last write (``learn``), and what vanished while nobody watched is gone after the next
re-list (``replace``). Resource versions are compared as numbers, which the Kubernetes API promises since 1.35 and
etcd has always kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace of cluster-scoped objects is the empty string."""
Index = Callable[[Object], Iterable[str]]
"""The values by which an object is to be found, e.g. its owner's UID."""


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after; ``old`` None: it is new, ``new`` None: it is gone.

    Both are set and differ in UID when an object was deleted and made again unseen.
    """

    key: Key
    old: Object | None
    new: Object | None


def key_of(thing: Object) -> Key:
    """Return the key of an object."""
    metadata = thing["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def version_of(thing: Object) -> int:
    """Return the object's resource version as a number."""
    return int(thing["metadata"]["resourceVersion"])


class Store:
    """Objects of one kind by key, with one optional secondary index. For one event loop; objects are not to be changed.

    The methods that write return what they changed, so that the owners can be woken.
    """

    def __init__(self, index: Index | None = None, slim: Callable[[Object], Object] = lambda thing: thing) -> None:
        """*slim* returns as much of an object as is to be kept: at least what names it and its version."""
        self._slim = slim
        self._index = index or (lambda _thing: ())
        self._objects: dict[Key, Object] = {}
        self._by_value: dict[str, dict[Key, Object]] = {}
        self._version = 0

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self.values())

    def get(self, name: str, namespace: str = "") -> Object | None:
        """Return the object, or None."""
        return self._objects.get((namespace, name))

    def values(self) -> list[Object]:
        """Return all objects, a list of its own."""
        return list(self._objects.values())

    def indexed(self, value: str) -> list[Object]:
        """Return the objects that the index files under *value*."""
        return list(self._by_value.get(value, {}).values())

    def replace(self, objects: Iterable[Object], resource_version: str) -> list[Change]:
        """Take *objects* for the whole truth at *resource_version*; what is not among them is gone.

        Only what was learned from a later write of our own stays: the list could not know it.
        """
        listed_at = int(resource_version)
        changes: list[Change] = []
        seen: set[Key] = set()
        for thing in objects:
            key = key_of(thing)
            seen.add(key)
            old = self._objects.get(key)
            if old is None or version_of(thing) > version_of(old) or _uid(thing) != _uid(old):
                changes.append(self._set(key, thing))
        vanished = [key for key in self._objects.keys() - seen if version_of(self._objects[key]) <= listed_at]
        changes.extend(self._set(key, None) for key in vanished)
        self._version = max(self._version, listed_at)
        return changes

    def take(self, kind: str, thing: Object) -> Change | None:
        """Take one watch event (*kind* ADDED, MODIFIED, DELETED or BOOKMARK); None if it tells nothing new."""
        version = version_of(thing)
        self._version = max(self._version, version)
        if kind == "BOOKMARK":
            return None
        key = key_of(thing)
        old = self._objects.get(key)
        if kind == "DELETED":
            if old is None or (version_of(old) > version and _uid(old) != _uid(thing)):
                return None  # a successor of the same name, learned before the watch got here
            return self._set(key, None)
        if old is not None and version_of(old) >= version:
            return None
        return self._set(key, thing)

    def learn(self, thing: Object) -> Change | None:
        """Take the answer to a write of our own, before the watch brings it; None if the watch was quicker.

        What is absent although the watch has passed its version was deleted since, and must not come back.
        """
        version = version_of(thing)
        key = key_of(thing)
        old = self._objects.get(key)
        if version <= (self._version if old is None else version_of(old)):
            return None
        return self._set(key, thing)

    def _set(self, key: Key, new: Object | None) -> Change:
        new = self._slim(new) if new is not None else None
        old = self._objects.pop(key, None)
        if old is not None:
            for value in self._index(old):
                filed = self._by_value.get(value, {})
                filed.pop(key, None)
                if not filed:
                    self._by_value.pop(value, None)
        if new is not None:
            self._objects[key] = new
            for value in self._index(new):
                self._by_value.setdefault(value, {})[key] = new
        return Change(key, old, new)


def _uid(thing: Object) -> Any:
    return thing["metadata"].get("uid")
