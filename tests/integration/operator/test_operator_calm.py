"""The loop as it runs, on real watches: it stays calm while all fails, and finds back when the API server returns."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import pytest

from lorafinetune.jobs import Jobs
from lorafinetune.kube import errors, pods, seen
from lorafinetune.kube.client import PODS, RUNS, Cluster, Resource
from lorafinetune.kube.reflector import Reflector
from lorafinetune.kube.store import Change, Store
from lorafinetune.kube.stores import NamespacedStore, Stores
from lorafinetune.loop import Loop
from lorafinetune.places import filed
from lorafinetune.telemetry import Metrics
from tests.integration.operator.cutting import Fault, Unreliable
from tests.integration.operator.lives import TURNS, everything
from tests.integration.operator.world import POOL, READY, Answers, Operator, Silent, World

pytestmark = pytest.mark.usefixtures("hollow")

SECONDS = 8.0
"""For so long nothing succeeds."""
CALM = 30
"""Requests of one run in that time, at most: pauses double up to 5 s. Without them there are hundreds."""


@pytest.mark.parametrize("fault", [Fault.CONFLICT, Fault.BROKEN], ids=lambda fault: fault.name)
async def test_what_always_fails_is_not_asked_in_a_hot_loop(api: Cluster, namespace: str, fault: Fault) -> None:
    world = World(api, namespace)
    await world.apply()
    await world.look()
    hands = Unreliable(api, lambda _number, method, *_: None if method == "GET" else fault)
    operator = Operator(world, hands)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(operator.loop.run(), SECONDS)
    assert 2 <= hands.requests <= CALM
    hands.plan = lambda *_: None
    for _ in range(3):
        await operator.loop._pass(world.uid)
    await world.look()
    assert world.last.get("phase"), "it goes on once it may"
    await world.delete()
    await operator.loop._pass(world.uid)
    for _ in range(5):
        await world.look()
        operator.hear()
        await operator.loop._pass(world.uid)
    assert (await api.get(RUNS, world.name, namespace)) is None


class Breaking(Unreliable):
    """A connection whose watches break now and then, and whose requests fail at random."""

    def __init__(self, over: Cluster, seed: int) -> None:
        self.dice = random.Random(seed)
        self.breaks = 0
        super().__init__(over, lambda *_: Fault.BROKEN if self.dice.random() < 0.05 else None)

    async def watch(self, resource: Resource, *args: Any, **options: Any) -> AsyncGenerator[Any, None]:
        count = 0
        async with contextlib.aclosing(super().watch(resource, *args, **options)) as stream:
            async for event in stream:
                yield event
                count += 1
                if count > 3 and self.dice.random() < 0.25:
                    self.breaks += 1
                    gone = self.dice.random() < 0.5
                    raise errors.Gone("played: too old") if gone else errors.Unavailable("played: broken")


class Process:
    """The operator with reflectors of its own for runs and pods, as ``serve.py`` has them."""

    def __init__(self, world: World, hands: Unreliable) -> None:
        self.witness = Silent()
        runs = Store(index=lambda run: [run["metadata"]["uid"]])
        stored, nodes, pools = Store(index=filed), Store(), Store()
        nodes.take("ADDED", READY)
        pools.take("ADDED", POOL)
        self.loop = Loop(
            hands,
            Stores(runs, NamespacedStore({None: stored}), nodes, pools),
            pods.Trainer(image="trainer"),
            witness=cast(Any, self.witness),
            metrics=Metrics(),
            make_jobs=lambda wake: cast(Jobs, Answers(world.bucket, wake, world.clock)),
            clock=world.clock,
            collect_timeout=900.0,
        )
        about: dict[str, Any] = {"namespace": world.namespace}
        self.reflectors = [
            Reflector(hands, RUNS, runs, wake=self._run, **about),
            Reflector(hands, PODS, stored, wake=self._pod, label_selector=seen.LABEL_RUN_UID, **about),
        ]

    def _run(self, change: Change) -> None:
        self.loop.run_changed(change)

    def _pod(self, change: Change) -> None:
        self.loop.pod_changed(change)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(one.run()) for one in self.reflectors]
        await asyncio.gather(*(one.synced.wait() for one in self.reflectors))
        self.loop.begin()
        tasks.append(asyncio.create_task(self.loop.run()))
        try:
            yield
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_watches_break_and_the_api_server_is_killed(cluster: Any, api: Cluster, namespace: str) -> None:
    """Real watches that break, one request in twenty that fails, the API server killed twice: one life all the same."""
    hands = Breaking(api, seed=7)
    world = World(api, namespace)
    await world.apply()
    killed = 0
    async with Process(world, hands).running():
        while not world.gone:
            assert world.turns < TURNS, f"stuck: {world.last.get('phase')}: {world.last.get('message')}"
            await world.look()
            if world.gone:
                break
            await world.turn()
            await everything(world)
            if world.turns > 3 and killed < world.highest and killed < 2:
                killed += 1
                before = hands.requests
                await asyncio.to_thread(cluster.faults.kill_api_server)
                await asyncio.sleep(2)  # the time in which everything fails
                assert hands.requests - before <= 40, "it hammers at a server that is away"
                await asyncio.to_thread(cluster.faults.start_api_server)
            await asyncio.sleep(0.2)  # so long a turn takes at least: the loop works beside
    assert [one.get("cause") for one in world.history] == ["Preempted", "Suspended", "Finished"]
    assert killed == 2
    assert hands.breaks > 3
    assert hands.requests <= 250
    assert not world.bucket.marked
