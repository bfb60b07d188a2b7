"""A whole life of a run: created, preempted, suspended, resumed, finished, deleted; whatever befalls its operator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from lorafinetune.kube.client import Cluster
from tests.integration.operator.cutting import Killed, Plan, Unreliable, cut
from tests.integration.operator.world import Operator, World

TURNS = 400
"""Turns after which a life counts as stuck: an undisturbed one takes 25, one in which all goes wrong 150."""

User = Callable[[World], Awaitable[None]]


async def everything(world: World) -> None:
    """A user, and a cloud, that try all there is: attempt 1 is evicted, 2 suspended, 3 comes to its end."""
    if (pod := world.running(1)) is not None:
        await world.evict(pod)
    elif world.running(2) is not None:
        await world.suspend(True)
    elif (pod := world.running(3)) is not None:
        world.bucket.artifact = True
        await world.end(pod, 0)
    elif world.run is not None and world.run["spec"].get("suspend") and world.last.get("phase") == "Suspended":
        if not [one for one in world.history if not one.get("cause")]:
            await world.suspend(False)
    elif world.last.get("pruned"):
        await world.delete()


class Life:
    """One run's way through the world, under one operator after the other."""

    def __init__(
        self,
        world: World,
        plan: Plan = lambda *_: None,
        *,
        user: User = everything,
        cut_at: int = 0,
        hands: Unreliable | None = None,
    ) -> None:
        self.world = world
        self.hands = hands if hands is not None else Unreliable(world.api, plan)
        self.user = user
        self.cut_at = cut_at
        """The suspension, of all passes together, at which the operator dies; 0 = none."""
        self.suspended = 0
        self.deaths = 0
        self.passes = 0
        self.witnesses: list[Any] = []

    async def live(self) -> None:
        """Go on until the run is gone."""
        world = self.world
        await world.apply()
        await world.look()
        operator = Operator(world, self.hands)
        self.witnesses.append(operator.witness)
        kills = self.hands.kills
        while not world.gone:
            assert world.turns < TURNS, f"stuck: {world.last.get('phase')}: {world.last.get('message')}"
            await world.turn()
            await self.user(world)
            if world.touched:
                await world.look()
            operator.hear()
            survived = await self._pass(operator)
            await world.look()
            if not survived or self.hands.kills > kills:  # the second: in a task beside the loop
                kills = self.hands.kills
                self.deaths += 1
                operator = Operator(world, self.hands)
                self.witnesses.append(operator.witness)

    async def _pass(self, operator: Operator) -> bool:
        """Look at the run once; whether the operator lives on."""
        self.passes += 1
        working = operator.loop._pass(self.world.uid)
        try:
            if not self.cut_at:
                await working
                return True
            left = self.cut_at - self.suspended
            count = await cut(working, left if left > 0 else 10**9)
        except Killed:
            return False
        self.suspended += count
        return not (left > 0 and count == left)


async def left_behind(world: World) -> list[str]:
    """Return the pods of a run that is gone which somebody still holds."""
    await world.look()
    return [pod["metadata"]["name"] for pod in world.pods if pod["metadata"].get("finalizers")]


async def lived(api: Cluster, namespace: str, plan: Plan = lambda *_: None, *, cut_at: int = 0) -> Life:
    """Live a whole life and hold its history to what befell it."""
    life = Life(World(api, namespace), plan, cut_at=cut_at)
    await life.live()
    world = life.world
    told = [(one["number"], one.get("cause")) for one in world.history]
    assert told == [(1, "Preempted"), (2, "Suspended"), (3, "Finished")], told
    assert world.last.get("preemptions") == 1
    assert not world.last.get("failures")
    assert not world.bucket.marked, "its storage was not collected"
    assert not await left_behind(world)
    return life
