"""Kubernetes events on a real API server, as people read them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorafinetune.kube import events
from lorafinetune.kube.client import CONFIGMAPS, EVENTS, Cluster
from lorafinetune.kube.events import CONTROLLER, EventRecorder, Reference
from lorafinetune.ratelimit import RateLimit
from tests.integration import patience
from tests.integration.tunnel import Tunnel

until = partial(patience.until, seconds=30.0)


@pytest.fixture
async def thing(api: Cluster, namespace: str) -> Reference:
    """Stand for a run: to an event, all objects are alike."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "timber"}}
    return Reference.to("v1", "ConfigMap", await api.create(CONFIGMAPS, body, namespace))


@contextlib.asynccontextmanager
async def running(recorder: EventRecorder) -> AsyncIterator[EventRecorder]:
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stored(api: Cluster, namespace: str) -> list[dict[str, Any]]:
    found, _ = await api.list_all(EVENTS, namespace)
    return [one for one in found if one.get("reportingController") == CONTROLLER]


async def test_event_is_stored_as_people_read_it(api: Cluster, cluster: Any, namespace: str, thing: Reference) -> None:
    pod = Reference("v1", "Pod", namespace, "timber-abcde-1", "uid-of-pod")
    note = "node gpu-1 was taken back; resuming at step 40"
    async with running(EventRecorder(api, "replica-0")) as recorder:
        recorder.record(thing, reason="Preempted", action="Replace", note=note, warning=True, related=pod)
        await recorder.flush()
    (event,) = await stored(api, namespace)
    assert (event["type"], event["reason"], event["action"]) == ("Warning", "Preempted", "Replace")
    assert event["note"] == note
    assert event["regarding"]["uid"] == thing.uid
    assert event["related"]["name"] == "timber-abcde-1"
    assert event["reportingInstance"] == "replica-0"
    described = await asyncio.to_thread(cluster.kubectl, "describe", "configmap", "timber", "-n", namespace)
    assert "Preempted" in described
    assert note in described


async def test_same_news_is_one_event_that_counts(api: Cluster, namespace: str, thing: Reference) -> None:
    counted: Counter[str] = Counter()
    recorder = EventRecorder(api, "replica-0", count=lambda outcome: counted.update([outcome]))

    def tell() -> None:
        recorder.record(thing, reason="Waiting", action="Wait", note="no node fits")

    async with running(recorder):
        tell()
        await recorder.flush()
        tell()
        tell()
        tell()
        await recorder.flush()
    (event,) = await stored(api, namespace)
    assert event["series"]["count"] == 4
    assert counted == {"created": 1, "repeated": 1}, "three at once are one write"

    again = EventRecorder(api, "replica-1")  # the operator has been restarted
    async with running(again):
        again.record(thing, reason="Waiting", action="Wait", note="no node fits")
        again.record(thing, reason="Waiting", action="Wait", note="another reason to wait")
        await again.flush()
    counts = {one["note"]: (one.get("series") or {}).get("count") for one in await stored(api, namespace)}
    assert counts == {"no node fits": 5, "another reason to wait": None}


async def test_expired_event_begins_anew(api: Cluster, namespace: str, thing: Reference) -> None:
    async with running(EventRecorder(api, "replica-0")) as recorder:
        recorder.record(thing, reason="Waiting", action="Wait", note="no node fits")
        await recorder.flush()
        (event,) = await stored(api, namespace)
        await api.delete(EVENTS, event["metadata"]["name"], namespace)
        recorder.record(thing, reason="Waiting", action="Wait", note="no node fits")
        await recorder.flush()
    (event,) = await stored(api, namespace)
    assert event.get("series") is None


async def test_long_notes_are_cut_in_bytes(api: Cluster, namespace: str, thing: Reference) -> None:
    async with running(EventRecorder(api, "replica-0")) as recorder:
        recorder.record(thing, reason="Failed", action="Stop", note="ü" * 2000)
        await recorder.flush()
    (event,) = await stored(api, namespace)
    assert event["note"].endswith("ü...")
    assert len(event["note"].encode()) <= 1024


async def test_talkative_object_is_cut_short_alone(api: Cluster, namespace: str, thing: Reference) -> None:
    counted: Counter[str] = Counter()
    recorder = EventRecorder(
        api, "replica-0", count=lambda outcome: counted.update([outcome]), limit=RateLimit(0.001, 3)
    )
    other = Reference("v1", "ConfigMap", namespace, "other", "another-uid")
    async with running(recorder):
        for number in range(5):
            recorder.record(thing, reason="Progress", action="Tell", note=f"step {number}")
        recorder.record(other, reason="Progress", action="Tell", note="step 1")
        await recorder.flush()
    assert len(await stored(api, namespace)) == 4
    assert recorder.dropped == 2
    assert counted == {"created": 4, "dropped": 2}


async def test_queue_is_bounded(
    api: Cluster, namespace: str, thing: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_WAITING", 2)
    recorder = EventRecorder(api, "replica-0")
    for number in range(5):
        recorder.record(thing, reason="Progress", action="Tell", note=f"step {number}")
    assert recorder.dropped == 3


async def test_what_is_filed_at_the_end_is_told_before_the_end(api: Cluster, namespace: str, thing: Reference) -> None:
    recorder = EventRecorder(api, "replica-0")
    async with running(recorder):
        await asyncio.sleep(0)
    recorder.record(thing, reason="Stopping", action="Stop", note="the last word")
    await recorder.flush()
    assert [event["reason"] for event in await stored(api, namespace)] == ["Stopping"]


async def test_end_is_not_held_up_by_an_api_server_that_is_away(
    cluster: Any, namespace: str, thing: Reference, tmp_path: Path
) -> None:
    async with Tunnel(cluster.kubeconfig, tmp_path) as tunnel:
        through = await Cluster.connect(str(tunnel.kubeconfig), request_timeout=300)
        tunnel.hush()
        recorder = EventRecorder(through, "replica-0")
        for number in range(3):
            recorder.record(thing, reason="Stopping", action="Stop", note=f"last word {number}")
        await asyncio.wait_for(recorder.flush(0.5), 30)
        assert recorder.dropped == 2, "what waits behind the one that is on its way"
        tunnel.heal()
        await through.close()


async def test_refused_event_hurts_nobody(api: Cluster, namespace: str, thing: Reference) -> None:
    counted: Counter[str] = Counter()
    async with running(EventRecorder(api, "replica-0", count=lambda outcome: counted.update([outcome]))) as recorder:
        nowhere = Reference("v1", "ConfigMap", "no-such-namespace", "x", "uid")
        recorder.record(nowhere, reason="Lost", action="Tell", note="nobody reads this")
        recorder.record(thing, reason="Found", action="Tell", note="somebody reads this")
        await recorder.flush()
    assert [event["reason"] for event in await stored(api, namespace)] == ["Found"]
    assert counted == {"failed": 1, "created": 1}


async def test_event_waits_for_an_api_server_that_is_away_for_a_moment(
    api: Cluster, cluster: Any, namespace: str, thing: Reference, tmp_path: Path
) -> None:
    async with Tunnel(cluster.kubeconfig, tmp_path) as tunnel:
        through = await Cluster.connect(str(tunnel.kubeconfig))
        try:
            async with running(EventRecorder(through, "replica-0")) as recorder:
                tunnel.cut()
                recorder.record(thing, reason="Preempted", action="Replace", note="it must be told")
                await until(lambda: not recorder._waiting, "it is being told")
                tunnel.heal()
                await recorder.flush(10)
            assert [event["reason"] for event in await stored(api, namespace)] == ["Preempted"]
        finally:
            await through.close()


async def test_lost_answer_is_not_counted_twice(api: Cluster, namespace: str, thing: Reference) -> None:
    """The create takes effect, its answer is lost, and the second try meets the first."""

    class Lossy(Cluster):
        lost = False

        async def create(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            made = await super().create(*arguments, **options)
            if not self.lost:
                self.lost = True
                raise events.Unavailable("the answer was lost")
            return made

    async with running(EventRecorder(Lossy(api._api), "replica-0")) as recorder:
        recorder.record(thing, reason="Preempted", action="Replace", note="once")
        await recorder.flush()
    (event,) = await stored(api, namespace)
    assert event.get("series") is None


async def test_names_are_fit_for_any_run(api: Cluster, namespace: str) -> None:
    long = Reference("lorafinetune.io/v1alpha1", "LoRAFineTune", namespace, "a" * 200, "uid")
    now = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
    async with running(EventRecorder(api, "r" * 200, clock=lambda: now)) as recorder:
        recorder.record(long, reason="Accepted", action="Begin", note="")
        await recorder.flush()
    (event,) = await stored(api, namespace)
    assert event["eventTime"] == "2026-11-23T00:00:00.000000Z"
    assert json.dumps(event)
