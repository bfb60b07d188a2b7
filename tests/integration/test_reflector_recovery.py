"""What broke kopf's index for ever: the API server is killed, an object vanishes unseen, history is compacted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorafinetune.kube import client, errors
from lorafinetune.kube.client import PODS, Cluster
from lorafinetune.kube.reflector import Reflector
from lorafinetune.kube.store import Change, Store
from tests.integration import patience
from tests.integration.tunnel import Tunnel


def pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "trainer", "image": "x"}], "schedulerName": "nobody"},
    }


until = partial(patience.until, seconds=60.0)


def names(store: Store) -> set[str]:
    return {thing["metadata"]["name"] for thing in store}


@contextlib.asynccontextmanager
async def following(reflector: Reflector) -> AsyncIterator[None]:
    task = asyncio.create_task(reflector.run())
    try:
        await asyncio.wait_for(reflector.synced.wait(), 30)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def restart(cluster: Any) -> None:
    await asyncio.to_thread(cluster.faults.kill_api_server)
    await asyncio.to_thread(cluster.faults.start_api_server)


async def test_pod_that_vanished_while_the_api_server_was_down_is_woken(
    cluster: Any, api: Cluster, namespace: str, tmp_path: Path
) -> None:
    for name in ("stays", "vanishes", "again"):
        await api.create(PODS, pod(name), namespace)
    async with Tunnel(cluster.kubeconfig, tmp_path) as tunnel:
        through = await Cluster.connect(str(tunnel.kubeconfig))
        woken: list[Change] = []
        reflector = Reflector(through, PODS, Store(), wake=woken.append, namespace=namespace)
        try:
            async with following(reflector):
                assert names(reflector.store) == {"stays", "vanishes", "again"}
                resumed_at = reflector.resumed_at
                woken.clear()
                tunnel.cut()
                await restart(cluster)
                for name in ("vanishes", "again"):
                    await api.delete(PODS, name, namespace, grace_seconds=0)
                await api.create(PODS, pod("again"), namespace)
                await api.create(PODS, pod("new"), namespace)
                await asyncio.to_thread(cluster.faults.compact)
                await until(lambda: reflector._failures > 2, "it has tried in vain")
                assert names(reflector.store) == {"stays", "vanishes", "again"}
                assert not reflector.healthy
                tunnel.heal()
                await until(lambda: names(reflector.store) == {"stays", "again", "new"}, "the store converges")
                told = {change.key[1]: change for change in woken}
                assert told.keys() == {"vanishes", "again", "new"}
                assert told["vanishes"].new is None
                old, new = told["again"].old, told["again"].new
                assert old is not None
                assert new is not None
                assert old["metadata"]["uid"] != new["metadata"]["uid"]
                assert reflector.resumed_at > resumed_at
                assert reflector.healthy
        finally:
            await through.close()


async def test_version_that_was_compacted_away_is_answered_by_a_list(
    cluster: Any, api: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The watch ends in peace, the next one starts from a version that the server has forgotten: 410."""
    monkeypatch.setattr(client, "WATCH_SECONDS", (1, 1))
    caplog.set_level("INFO")
    ended, go_on = asyncio.Event(), asyncio.Event()
    versions: list[str] = []

    class Paused(Cluster):
        async def watch(self, *arguments: Any, **options: Any) -> Any:
            versions.append(options["resource_version"])
            if len(versions) == 2:
                ended.set()
                await go_on.wait()
            async for event in super().watch(*arguments, **options):
                yield event

    await api.create(PODS, pod("stays"), namespace)
    await api.create(PODS, pod("vanishes"), namespace)
    woken: list[Change] = []
    paused = Paused(api._api)
    reflector = Reflector(paused, PODS, Store(), wake=woken.append, namespace=namespace)
    async with following(reflector):
        await asyncio.wait_for(ended.wait(), 30)
        woken.clear()
        await api.delete(PODS, "vanishes", namespace, grace_seconds=0)
        await restart(cluster)
        await asyncio.to_thread(cluster.faults.compact)
        with pytest.raises(errors.Gone):
            await anext(api.watch(PODS, namespace, resource_version=versions[1]))
        go_on.set()
        await until(lambda: names(reflector.store) == {"stays"}, "the store converges")
        assert [change.key[1] for change in woken] == ["vanishes"]
        assert "too old resource version" in caplog.text


async def test_half_open_connection_is_found_out(cluster: Any, api: Cluster, namespace: str, tmp_path: Path) -> None:
    await api.create(PODS, pod("vanishes"), namespace)
    async with Tunnel(cluster.kubeconfig, tmp_path) as tunnel:
        through = await Cluster.connect(str(tunnel.kubeconfig), request_timeout=1.0)
        reflector = Reflector(through, PODS, Store(), wake=lambda _: None, namespace=namespace, silence=1.0)
        try:
            async with following(reflector):
                tunnel.hush()
                await api.delete(PODS, "vanishes", namespace, grace_seconds=0)
                await until(lambda: reflector._failures, "the silence is noticed")
                assert names(reflector.store) == {"vanishes"}
                tunnel.heal()
                await until(lambda: names(reflector.store) == set(), "the store converges")
        finally:
            await through.close()
