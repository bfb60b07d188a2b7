"""Events of pods read from a real API server: by the pod's UID, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from lorafinetune.engine.times import stamp
from lorafinetune.kube.client import EVENTS, Cluster
from lorafinetune.kube.errors import Refused, Unavailable
from lorafinetune.kube.evidence import EventReader
from tests.integration import patience

until = partial(patience.until, seconds=30.0)
POD = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"


class Counted(Cluster):
    """A connection that counts the requests of the reader, and can be told to fail them."""

    asked: list[tuple[str | None, str]]
    error: Exception | None = None

    async def list_some(self, resource: Any, namespace: str | None = None, **how: Any) -> list[dict[str, Any]]:
        self.asked.append((namespace, how["field_selector"]))
        if self.error is not None:
            raise self.error
        return await super().list_some(resource, namespace, **how)


@pytest.fixture
async def counted(cluster: Any) -> AsyncIterator[Counted]:
    made = await Counted.connect(str(cluster.kubeconfig))
    made.asked = []
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def reading(cluster: Cluster) -> AsyncIterator[tuple[EventReader, list[str]]]:
    woken: list[str] = []
    reader = EventReader(cluster, wake=woken.append, clock=time.time, pause=0.01)
    try:
        yield reader, woken
    finally:
        await reader.close()


async def tell(
    cluster: Cluster, namespace: str, reason: str, note: str, *, uid: str = POD, name: str = "timber-1"
) -> None:
    """File an event as client-go's recorder does, in the older API, which most of Kubernetes still writes."""
    now = stamp(time.time())
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}-"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
        "reason": reason,
        "message": note,
        "type": "Normal",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    await cluster._call("POST", f"/api/v1/namespaces/{namespace}/events", body=body)


async def test_a_pods_events_are_found_by_its_uid_and_no_others(counted: Counted, namespace: str) -> None:
    await tell(counted, namespace, "TriggeredScaleUp", "pod triggered scale-up: [{spot 0->1 (max: 3)}]")
    await tell(counted, namespace, "NotTriggerScaleUp", "no", uid="another")
    async with reading(counted) as (reader, woken):
        assert reader.told(POD) is None
        for _ in range(5):
            reader.ask(namespace, "timber-1", POD, "run-1")
        await until(lambda: woken == ["run-1"], "the run is woken")
        told = reader.told(POD)
        assert told is not None
        assert told.scale_up_since == pytest.approx(time.time(), abs=30)
        assert not told.no_scale_up
        assert counted.asked == [(namespace, f"regarding.uid={POD}")], "one request for one look"

        await tell(counted, namespace, "FailedScaleUp", "Node scale up failed: GCE out of resources.")
        await asyncio.sleep(1.1)  # their times are in whole seconds: the newer one must be newer
        await tell(counted, namespace, "FailedScaleUp", "Node scale up failed: GCE out of resources.")
        reader.ask(namespace, "timber-1", POD, "run-1")
        await until(lambda: len(woken) == 2, "the run is woken")
        told = reader.told(POD)
        assert told is not None
        assert told.scale_up_since is None
        assert told.insufficient_capacity == "Node scale up failed: GCE out of resources."

        reader.forget(POD)
        assert reader.told(POD) is None


async def test_failed_node_claims_are_read_once_for_all_pods(counted: Counted, namespace: str) -> None:
    claim = f"claim-of-{namespace}"
    now = stamp(time.time())
    body = {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {"generateName": f"{claim}-"},
        "regarding": {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": claim, "uid": "claim"},
        "reason": "InsufficientCapacityError",
        "note": f"NodeClaim {claim} event: creating instance, insufficient capacity",
        "type": "Warning",
        "action": "Launch",
        "eventTime": now.replace("Z", ".000000Z"),
        "reportingController": "karpenter",
        "reportingInstance": "karpenter-0",
    }
    await counted.create(EVENTS, body, "default")
    for uid in ("pod-1", "pod-2"):
        await tell(counted, namespace, "Nominated", f"Pod should schedule on: nodeclaim/{claim}", uid=uid)
    async with reading(counted) as (reader, woken):
        for uid in ("pod-1", "pod-2"):
            reader.ask(namespace, uid, uid, f"run of {uid}")
        await until(lambda: woken == ["run of pod-1", "run of pod-2"], "the run is woken")
        for uid in ("pod-1", "pod-2"):
            told = reader.told(uid)
            assert told is not None
            assert "insufficient capacity" in told.insufficient_capacity
            assert told.scale_up_since is None
    assert [place for place, _ in counted.asked].count("default") == 1


@pytest.mark.parametrize("error", [Refused("events is forbidden", status=403), Unavailable("away"), KeyError("odd")])
async def test_what_cannot_be_read_is_missing_and_nothing_waits(
    counted: Counted, namespace: str, error: Exception
) -> None:
    await tell(counted, namespace, "NotTriggerScaleUp", "pod didn't trigger scale-up")
    async with reading(counted) as (reader, woken):
        reader.ask(namespace, "timber-1", POD, "run-1")
        await until(lambda: len(woken) == 1, "the run is woken")
        counted.error = error
        before = reader.told(POD)
        reader.ask(namespace, "timber-1", POD, "run-1")
        reader.ask(namespace, "other", "other", "run-2")
        await until(lambda: woken == ["run-1", "run-1", "run-2"], "the run is woken")
        after, other = reader.told(POD), reader.told("other")
        assert before is not None
        assert after is not None
        assert other is not None
        assert after.no_scale_up == before.no_scale_up == "pod didn't trigger scale-up", "what was known stays"
        assert after.read > before.read, "and is not asked for again at once"
        assert not other.no_scale_up
