"""The operator dies at every await of its loop, through a whole life of a run: never two attempts, never none.

What each life is held to stands in ``lives.py`` and ``World.look``. ``make test-long`` has a life for each single
request and suspension; the lives here put as many deaths and errors into each as they can.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import hypothesis  # noqa: F401 - its plugin reports at the end, when thousands of cut coroutines leave 3.11 unable to import
import pytest

from lorafinetune.kube.client import Cluster
from tests.integration.operator.cutting import ERRORS, KILLS, EachInTurn, Fault, Plan, Unreliable
from tests.integration.operator.lives import Life, lived
from tests.integration.operator.world import Operator, World

pytestmark = pytest.mark.usefixtures("hollow")

BESIDE = 8
"""Lives that go on beside one another."""
REQUESTS = 45
"""Requests that the operator makes in an undisturbed life, at most; 32 were counted."""


def nothing(*_request: object) -> None:
    """Let every request succeed."""


def only(at: int, fault: Fault) -> Plan:
    """Return the plan by which one request goes wrong, and no other."""
    return lambda number, *_request: fault if number == at else None


def now_and_then(seed: int, faults: tuple[Fault, ...], share: float) -> Plan:
    """Return the plan by which a *share* of all requests goes wrong."""
    dice = random.Random(seed)
    return lambda *_request: dice.choice(faults) if dice.random() < share else None


async def many(api: Cluster, namespace: str, plans: Iterable[Plan | int]) -> list[Life]:
    """Live a life for each plan, or for each suspension at which the operator is cut; some beside one another."""
    room = asyncio.Semaphore(BESIDE)

    async def one(plan: Plan | int) -> Life:
        async with room:
            if isinstance(plan, int):
                return await lived(api, namespace, nothing, cut_at=plan)
            return await lived(api, namespace, plan)

    async with asyncio.TaskGroup() as lives:
        tasks = [lives.create_task(one(plan)) for plan in plans]
    return [task.result() for task in tasks]


async def test_an_undisturbed_life(api: Cluster, namespace: str) -> None:
    life = await lived(api, namespace)
    assert life.deaths == 0
    assert life.hands.requests <= REQUESTS


ROWS: tuple[tuple[Fault, ...], ...] = (
    (Fault.KILLED_BEFORE, Fault.KILLED_AFTER),
    (Fault.CONFLICT, Fault.GONE, Fault.BROKEN, Fault.UNANSWERED),
)


async def test_all_goes_wrong_at_every_write(api: Cluster, namespace: str) -> None:
    """Each write is killed before and after its effect, or answered with 409, 410, 500 and then not at all."""
    plans = [EachInTurn(*faults) for faults in ROWS]
    lives = await many(api, namespace, plans)
    for life, plan, faults in zip(lives, plans, ROWS, strict=True):
        assert min(plan.played[fault] for fault in faults) >= 10, plan.played
        assert life.deaths == sum(plan.played[fault] for fault in KILLS)
        assert life.hands.requests <= REQUESTS * (len(faults) + 2), "what fails is asked again and again"


async def test_a_pod_that_was_made_unheard_is_found_and_not_made_twice(api: Cluster, namespace: str) -> None:
    """The answer to the create is lost, and no watch has brought the pod yet: the 409 of the second is ours."""
    world = World(api, namespace)
    await world.apply()
    await world.look()
    made: list[str] = []

    def plan(_number: int, method: str, path: str, _body: object) -> Fault | None:
        if method != "POST" or not path.endswith("/pods"):
            return None
        made.append(path)
        return Fault.UNANSWERED if len(made) == 1 else None

    operator = Operator(world, Unreliable(api, plan))
    for _ in range(12):  # in all of which its stores learn of nothing but its own writes
        await operator.loop._pass(world.uid)
    await world.look()
    assert len(made) == 2, "it was asked for again, once"
    assert len(world.pods) == 1
    assert world.last["attempt"] == 1
    assert "PodNameTaken" not in [one.reason for one in operator.witness.announcements]


async def test_killed_and_refused_at_random(api: Cluster, namespace: str) -> None:
    plans = [now_and_then(seed, (*KILLS, *ERRORS), 0.3) for seed in range(4)]
    assert sum(life.deaths for life in await many(api, namespace, plans)) >= 4


async def suspensions(api: Cluster, namespace: str, step: int) -> None:
    """Cut the operator at every *step*-th suspension of a life."""
    count = (await lived(api, namespace, cut_at=10**9)).suspended
    assert count > 20
    lives = await many(api, namespace, range(step // 2 + 1, count + 1, step))
    # A life in which a request took another way may have fewer suspensions than the one that was counted.
    assert sum(life.deaths for life in lives) >= 0.8 * len(lives)


async def test_cut_at_some_suspensions(api: Cluster, namespace: str) -> None:
    await suspensions(api, namespace, step=40)


@pytest.mark.long
async def test_cut_at_every_suspension(api: Cluster, namespace: str) -> None:
    await suspensions(api, namespace, step=1)


@pytest.mark.long
@pytest.mark.parametrize("fault", [*KILLS, *ERRORS], ids=lambda fault: fault.name)
async def test_one_fault_at_every_single_request(api: Cluster, namespace: str, fault: Fault) -> None:
    undisturbed = (await lived(api, namespace)).hands.requests
    lives = await many(api, namespace, (only(number, fault) for number in range(1, undisturbed + 1)))
    if fault in KILLS:
        assert sum(life.deaths for life in lives) >= len(lives) - 2
    assert all(life.hands.requests <= REQUESTS + 15 for life in lives)


@pytest.mark.long
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
async def test_a_hundred_lives_at_random(api: Cluster, namespace: str, share: float) -> None:
    await many(api, namespace, [now_and_then(seed, (*KILLS, *ERRORS), share) for seed in range(100)])
