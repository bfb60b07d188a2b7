"""All that the operator holds of the cluster. A watched namespace has a store of its own: a list replaces it whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorafinetune.kube.store import Change, Object, Store


class NamespacedStore:
    """Reads and learns like a :class:`Store`; one store stands for everything, or one for each namespace."""

    def __init__(self, stores: Mapping[str | None, Store]) -> None:
        self._stores = stores

    def __iter__(self) -> Iterator[Object]:
        for store in self._stores.values():
            yield from store

    def _of(self, namespace: str) -> Store | None:
        return self._stores[namespace] if namespace in self._stores else self._stores.get(None)

    def get(self, name: str, namespace: str = "") -> Object | None:
        """Return the object, or None."""
        store = self._of(namespace)
        return store.get(name, namespace) if store is not None else None

    def indexed(self, value: str) -> list[Object]:
        """Return the objects that the index files under *value*."""
        return [thing for store in self._stores.values() for thing in store.indexed(value)]

    def learn(self, thing: Object) -> Change | None:
        """Take the answer to a write of our own."""
        store = self._of(thing["metadata"].get("namespace", ""))
        return store.learn(thing) if store is not None else None


@dataclass(frozen=True, slots=True)
class Stores:
    """What the cluster holds, as last heard."""

    runs: Store
    """Indexed by UID."""
    pods: NamespacedStore
    """Indexed by the run's UID."""
    nodes: Store
    pools: Store
