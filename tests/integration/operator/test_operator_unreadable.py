"""Statuses that the API server takes and no operator can read: one run's trouble, in words on the run itself."""

from __future__ import annotations

from typing import Any

import pytest

from lorafinetune import complaints
from lorafinetune.engine.rules import decide
from lorafinetune.kube.client import RUNS, Cluster
from tests.integration.operator.world import Operator, World

pytestmark = pytest.mark.usefixtures("hollow")
FIRST = {"number": 1, "pod": "x", "pool": "spot", "created": "2026-11-23T00:00:00Z"}


async def forge(world: World, status: dict[str, Any]) -> None:
    body = {
        "apiVersion": "lorafinetune.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": world.name, "namespace": world.namespace},
        "status": status,
    }
    await world.api.apply(RUNS, body, manager="somebody", subresource="status")
    await world.look()


def accepted(world: World) -> tuple[str, str]:
    found = next(one for one in world.last["conditions"] if one["type"] == "Accepted")
    return found["status"], found["reason"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"attempts": [FIRST | {"dry": "0000-01-01T00:00:00Z"}]}, "status.attempts.0.dry cannot be read: year 0"),
        ({"totals": {"cost": "abc"}}, "status.totals.cost cannot be read: must be a decimal number"),
    ],
    ids=["a date", "a sum"],
)
async def test_an_operator_starts_and_says_what_it_cannot_read(
    api: Cluster, namespace: str, status: dict[str, Any], words: str
) -> None:
    world = World(api, namespace)
    await world.apply()
    await forge(world, status)
    operator = Operator(world, api)  # this takes stock of what is there
    assert await operator.loop._pass(world.uid) == complaints.UNREADABLE
    await world.look()
    assert world.last["message"].startswith(words)
    assert accepted(world) == ("False", "Unreadable")
    await mend(world, status)
    for _ in range(8):
        operator.hear()
        await operator.loop._pass(world.uid)
        await world.look()
    assert accepted(world) == ("True", "Accepted")
    assert "cannot be read" not in world.last["message"]


async def mend(world: World, status: dict[str, Any]) -> None:
    """Take away again what was forged."""
    await forge(world, {})
    assert not set(status) & set(world.last)


async def test_a_run_of_which_every_pass_fails_says_so(
    api: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(api, namespace)
    await world.apply()
    await world.look()
    operator = Operator(world, api)

    def broken(*_about: Any) -> Any:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr("lorafinetune.loop.decide", broken)
    waits = [await operator.loop._pass(world.uid) for _ in range(complaints.TOLD_AFTER)]
    assert waits == [5.0, 10.0, 20.0]
    await world.look()
    assert world.last["message"].endswith("cannot go on with the run: ZeroDivisionError: float division by zero")
    assert accepted(world) == ("False", "PassFailed")
    monkeypatch.setattr("lorafinetune.loop.decide", decide)
    for _ in range(8):  # a status of mere words waits for the news that follows
        operator.hear()
        await operator.loop._pass(world.uid)
        await world.look()
    assert accepted(world) == ("True", "Accepted")
