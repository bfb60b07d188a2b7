"""One leader at a time, on real Leases, through cuts, crashes and hand-overs."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorafinetune.kube.client import LEASES, Cluster
from lorafinetune.kube.election import Candidate, Terms, lead
from lorafinetune.kube.errors import ClusterError
from tests.integration import patience
from tests.integration.tunnel import Tunnel

QUICK = Terms(lease=4, renew=2.5, retry=0.2)
LONG = Terms(lease=120, renew=60, retry=0.2)
"""Whoever waits for the end of such a lease is not done when the test is."""


until = partial(patience.until, seconds=20.0)


class Replica:
    """One process that wants to lead, and everything that it noticed."""

    def __init__(self, api: Cluster, namespace: str, identity: str) -> None:
        self.identity = identity
        self.leading = False
        self.lost = ""
        self.changes: list[bool] = []
        self.lost_at = 0.0
        self.task = asyncio.create_task(
            lead(
                api,
                namespace=namespace,
                name="operator",
                identity=identity,
                on_started=self.work,
                on_lost=self.lose,
                on_leading=self.changes.append,
                terms=QUICK,
            )
        )

    async def work(self) -> None:
        self.leading = True
        try:
            await asyncio.Event().wait()
        finally:
            self.leading = False

    def lose(self, reason: str) -> None:
        self.lost = reason
        self.lost_at = time.monotonic()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def lease(api: Cluster, namespace: str) -> dict[str, Any]:
    found = await api.get(LEASES, "operator", namespace)
    assert found is not None
    spec: dict[str, Any] = found["spec"]
    return spec


async def test_hand_over_on_shutdown_is_at_once(api: Cluster, namespace: str) -> None:
    first = Replica(api, namespace, "a")
    await until(lambda: first.leading, "the first leads")
    second = Replica(api, namespace, "b")
    await asyncio.sleep(QUICK.lease + 1)  # longer than the lease lasts, were it not renewed
    assert first.leading
    assert not second.leading
    await first.stop()
    assert (await lease(api, namespace))["holderIdentity"] != "a", "it is given back, not waited for"
    await until(lambda: second.leading, "the second leads")
    assert first.changes == [True, False]
    assert first.lost == ""
    spec = await lease(api, namespace)
    assert spec["holderIdentity"] == "b"
    assert spec["leaseTransitions"] == 1
    await second.stop()
    assert (await lease(api, namespace))["holderIdentity"] == ""


async def test_leader_that_crashed_is_replaced_when_its_lease_runs_out(api: Cluster, namespace: str) -> None:
    crashed = Candidate(api, namespace=namespace, name="operator", identity="a", terms=QUICK)
    await crashed.acquire()
    begun = time.monotonic()
    second = Replica(api, namespace, "b")
    await until(lambda: second.leading, "the second leads")
    assert time.monotonic() - begun >= QUICK.lease
    await second.stop()


async def test_restarted_process_of_the_same_identity_leads_at_once(api: Cluster, namespace: str) -> None:
    crashed = Candidate(api, namespace=namespace, name="operator", identity="a", terms=LONG)
    await crashed.acquire()
    again = Replica(api, namespace, "a")
    await until(lambda: again.leading, "it leads again")
    assert (await lease(api, namespace))["leaseTransitions"] == 0
    await again.stop()


async def test_leader_that_is_cut_off_stops_before_another_begins(
    api: Cluster, cluster: Any, namespace: str, tmp_path: Path
) -> None:
    async with Tunnel(cluster.kubeconfig, tmp_path) as tunnel:
        through = await Cluster.connect(str(tunnel.kubeconfig))
        first = Replica(through, namespace, "a")
        await until(lambda: first.leading, "the first leads")
        second = Replica(api, namespace, "b")
        tunnel.hush()  # half-open: the requests of the first hang
        await until(lambda: first.lost, "the first notices")
        assert not second.leading, "the first knows before the second begins"
        assert f"not renewed for {QUICK.renew:g} s" in first.lost
        await until(lambda: second.leading, "the second leads")
        with pytest.raises(ClusterError, match="a no longer leads"):
            await first.task
        assert not first.leading
        assert first.changes == [True, False]
        tunnel.heal()
        await through.close()
        assert (await lease(api, namespace))["holderIdentity"] == "b", "who lost the lease does not give it back"
        await second.stop()


async def test_leader_bears_an_api_server_that_is_away_for_a_moment(
    api: Cluster, cluster: Any, namespace: str, tmp_path: Path
) -> None:
    async with Tunnel(cluster.kubeconfig, tmp_path) as tunnel:
        through = await Cluster.connect(str(tunnel.kubeconfig))
        first = Replica(through, namespace, "a")
        await until(lambda: first.leading, "the first leads")
        tunnel.cut()
        await asyncio.sleep(0.7)  # less than terms.renew
        tunnel.heal()
        before = (await lease(api, namespace))["renewTime"]
        deadline = time.monotonic() + 10
        while (await lease(api, namespace))["renewTime"] == before:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert first.leading
        await first.stop()
        await through.close()


async def test_lease_that_another_took_by_force_is_lost(api: Cluster, namespace: str) -> None:
    first = Replica(api, namespace, "a")
    await until(lambda: first.leading, "the first leads")
    theft = [{"op": "replace", "path": "/spec/holderIdentity", "value": "thief"}]
    await api.json_patch(LEASES, "operator", namespace, theft)
    await until(lambda: first.lost, "the first notices")
    assert "held by 'thief'" in first.lost
    with pytest.raises(ClusterError):
        await first.task
    assert (await lease(api, namespace))["holderIdentity"] == "thief"


async def test_lease_that_was_changed_or_deleted_is_kept(api: Cluster, namespace: str) -> None:
    first = Replica(api, namespace, "a")
    await until(lambda: first.leading, "the first leads")
    note = [{"op": "add", "path": "/metadata/labels", "value": {"seen": "yes"}}]
    await api.json_patch(LEASES, "operator", namespace, note)
    await api.delete(LEASES, "operator", namespace)
    deadline = time.monotonic() + 10
    while await api.get(LEASES, "operator", namespace) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert (await lease(api, namespace))["holderIdentity"] == "a"
    assert first.leading
    await first.stop()


async def test_many_candidates_one_leader(api: Cluster, namespace: str) -> None:
    replicas = [Replica(api, namespace, f"r{number}") for number in range(8)]
    most = 0
    for _ in range(4):
        await until(lambda: any(one.leading for one in replicas), "one leads")
        most = max(most, sum(one.leading for one in replicas))
        leader = next(one for one in replicas if one.leading)
        replicas.remove(leader)
        await leader.stop()
    assert most == 1
    for one in replicas:
        await one.stop()


async def test_work_that_ends_gives_the_lease_back(api: Cluster, namespace: str) -> None:
    async def fails() -> None:
        raise RuntimeError("the work failed")

    with pytest.raises(RuntimeError, match="the work failed"):
        await lead(
            api,
            namespace=namespace,
            name="operator",
            identity="a",
            on_started=fails,
            on_lost=pytest.fail,
            terms=QUICK,
        )
    assert (await lease(api, namespace))["holderIdentity"] == ""
