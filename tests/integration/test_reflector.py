"""A store on a real API server: it follows, and it converges after the server was killed and history compacted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from lorafinetune.kube.client import CONFIGMAPS, Cluster, Resource
from lorafinetune.kube.reflector import Reflector
from lorafinetune.kube.store import Change, Store
from tests.integration import patience


def configmap(name: str, owner: str = "nobody") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"owner": owner}}}


def by_owner(thing: dict[str, Any]) -> list[str]:
    return [thing["metadata"]["labels"]["owner"]] if "labels" in thing["metadata"] else []


until = partial(patience.until, seconds=30.0)


@contextlib.asynccontextmanager
async def following(reflector: Reflector) -> AsyncIterator[Reflector]:
    task = asyncio.create_task(reflector.run())
    try:
        yield reflector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names(store: Store) -> set[str]:
    return {thing["metadata"]["name"] for thing in store if not thing["metadata"]["name"].startswith("kube-")}


async def test_follows_what_is_selected(api: Cluster, namespace: str) -> None:
    for number in range(5):
        await api.create(CONFIGMAPS, configmap(f"c{number}", "x"), namespace)
    await api.create(CONFIGMAPS, configmap("other", "y"), namespace)
    woken: list[Change] = []
    seen: list[str] = []
    reflector = Reflector(
        api,
        CONFIGMAPS,
        Store(by_owner),
        wake=woken.append,
        namespace=namespace,
        label_selector="owner in (x, z)",
        page=2,
        on_seen=seen.append,
    )
    assert not reflector.synced.is_set()
    async with following(reflector):
        await asyncio.wait_for(reflector.synced.wait(), 10)
        store = reflector.store
        assert names(store) == {f"c{number}" for number in range(5)}
        assert len(woken) == 5
        assert all("managedFields" not in thing["metadata"] for thing in store)
        woken.clear()
        await api.create(CONFIGMAPS, configmap("new", "z"), namespace)
        await until(lambda: store.get("new", namespace), "the new one is told")
        await api.delete(CONFIGMAPS, "c0", namespace)
        await until(lambda: store.get("c0", namespace) is None, "the deleted one is gone")
        # What is changed so that it is no longer selected is as gone as the deleted.
        patch = [{"op": "replace", "path": "/metadata/labels/owner", "value": "y"}]
        await api.json_patch(CONFIGMAPS, "c1", namespace, patch)
        await until(lambda: store.get("c1", namespace) is None, "the one no longer selected is gone")
        assert [(c.key[1], c.old is not None, c.new is not None) for c in woken] == [
            ("new", False, True),
            ("c0", True, False),
            ("c1", True, False),
        ]
        assert {thing["metadata"]["name"] for thing in store.indexed("x")} == {"c2", "c3", "c4"}
        assert not reflector.lagging()
        assert set(seen) == {"configmaps"}


async def test_learned_write_is_not_told_twice(api: Cluster, namespace: str) -> None:
    woken: list[Change] = []
    reflector = Reflector(api, CONFIGMAPS, Store(), wake=woken.append, namespace=namespace)
    async with following(reflector):
        await asyncio.wait_for(reflector.synced.wait(), 10)
        woken.clear()
        learned = reflector.store.learn(await api.create(CONFIGMAPS, configmap("mine"), namespace))
        await api.create(CONFIGMAPS, configmap("mark"), namespace)
        await until(lambda: reflector.store.get("mark", namespace), "the watch has passed our write")
        told = [change for change in woken if change.key[1] == "mine"]
        assert len(told) == (0 if learned else 1), "either the answer or the watch is first, and each is told once"


async def test_wake_that_raises_stops_nothing(api: Cluster, namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(change: Change) -> None:
        raise RuntimeError(f"no owner of {change.key}")

    async with following(Reflector(api, CONFIGMAPS, Store(), wake=broken, namespace=namespace)) as reflector:
        await api.create(CONFIGMAPS, configmap("one"), namespace)
        await until(lambda: reflector.store.get("one", namespace), "the first is stored")
        await api.create(CONFIGMAPS, configmap("two"), namespace)
        await until(lambda: reflector.store.get("two", namespace), "the second is stored")
    assert "no owner of" in caplog.text


async def test_silence_is_answered_by_a_new_list(api: Cluster, namespace: str) -> None:
    """A half-open connection brings neither events nor an end: only the list after the silence tells the truth."""
    lists = 0

    class Counting(Cluster):
        async def list_all(self, *arguments: Any, **options: Any) -> tuple[list[dict[str, Any]], str]:
            nonlocal lists
            lists += 1
            return await api.list_all(*arguments, **options)

    counting = Counting(api._api)
    reflector = Reflector(counting, CONFIGMAPS, Store(), wake=lambda _: None, namespace=namespace, silence=0.3)
    begun = reflector.resumed_at
    async with following(reflector):
        await until(lambda: lists >= 3, "it lists again after each silence")
        assert reflector.resumed_at > begun
        assert reflector.lagging(limit=0.0)


async def test_kind_that_is_not_there_is_tried_again_with_patience(api: Cluster, namespace: str) -> None:
    unknown = Resource("example.test", "v1", "unknowns", namespaced=True)
    async with following(Reflector(api, unknown, Store(), wake=lambda _: None)) as reflector:
        await until(lambda: reflector._failures >= 3, "three tries")
        assert not reflector.synced.is_set()
        assert not reflector.healthy
