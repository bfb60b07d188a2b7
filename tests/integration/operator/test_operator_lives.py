"""Suspension, resumption, deletion, edits, time to live and queues, in every phase of a run on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from localcluster.fixtures import wait_for_namespace
from localcluster.waiting import eventually
from lorafinetune.contract import runconfig
from lorafinetune.engine.decision import Job
from lorafinetune.kube import errors
from lorafinetune.kube.client import CONFIGMAPS, PODS, RUNS, Cluster
from tests.integration.operator.cutting import Unreliable
from tests.integration.operator.lives import Life, User, everything, left_behind
from tests.integration.operator.world import World, over

pytestmark = pytest.mark.usefixtures("hollow")

TURNS_OF_A_LIFE = 25
KUEUE = "kueue.x-k8s.io/managed"
GATE = "kueue.x-k8s.io/admission"


async def finishing(world: World) -> None:
    """Let every attempt come to its end by itself, two turns after it has begun."""
    for number in range(1, 6):
        if (pod := world.running(number)) is not None and pod["metadata"].get("annotations", {}).get("seen"):
            world.bucket.artifact = True
            await world.end(pod, 0)
        elif pod is not None:
            await world.annotate(pod, "seen", "yes")
    if world.last.get("pruned") and world.deletes:
        await world.delete()


def causes(world: World) -> list[str | None]:
    return [one.get("cause") for one in world.history]


async def side_by_side(*lives: Life) -> None:
    async with asyncio.TaskGroup() as tasks:
        for life in lives:
            tasks.create_task(life.live())


def deleting_at(turn: int) -> User:
    async def user(world: World) -> None:
        if world.turns == turn:
            await world.delete()
        elif world.turns < turn:
            await everything(world)

    return user


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.long)])
async def test_deleted_in_every_phase(api: Cluster, namespace: str, every: int) -> None:
    lives = [Life(World(api, namespace), user=deleting_at(turn)) for turn in range(1, TURNS_OF_A_LIFE, every)]
    await side_by_side(*lives)
    for life in lives:
        world = life.world
        assert not await left_behind(world)
        assert not [pod for pod in world.pods if not over(pod)]
        assert not world.bucket.marked
        assert Job.COLLECT in world.bucket.done or not world.history
    assert len({len(life.world.history) for life in lives}) > 2, "they were in different phases"


def suspending_at(turn: int, *, hasty: bool) -> User:
    """Suspend in that turn and resume when all is still; *hasty*: resume in the same second."""

    async def user(world: World) -> None:
        await finishing(world)
        wanted = (world.run or {}).get("spec", {}).get("suspend", False)
        if world.turns == turn:
            await world.suspend(True)
            if hasty:
                await world.suspend(False)
        elif wanted and world.last.get("phase") == "Suspended" and all(causes(world)) and world.turns > turn + 3:
            assert not [pod for pod in world.pods if not over(pod)], "it is suspended, and an attempt lives"
            await world.suspend(False)

    return user


@pytest.mark.parametrize("hasty", [False, True], ids=["at rest", "hasty"])
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
async def test_suspended_and_resumed_in_every_phase(api: Cluster, namespace: str, hasty: bool, every: int) -> None:
    lives = [Life(World(api, namespace), user=suspending_at(turn, hasty=hasty)) for turn in range(1, 14, every)]
    await side_by_side(*lives)
    for life in lives:
        assert [one for one in causes(life.world) if one != "Suspended"] == ["Finished"], causes(life.world)
        assert causes(life.world).count("Suspended") <= 1
        assert not life.world.last.get("preemptions")
        assert not await left_behind(life.world)
    assert hasty or any("Suspended" in causes(life.world) for life in lives)


async def test_resumed_between_the_word_and_the_deed(api: Cluster, namespace: str) -> None:
    """It stands in the status that the attempt is to be stopped; before its pod is deleted, the user resumes."""

    async def user(world: World) -> None:
        suspended = (world.run or {}).get("spec", {}).get("suspend", False)
        if suspended and world.history[-1].get("stopping"):
            assert world.running(1) is not None, "its pod is not deleted yet"
            await world.suspend(False)
        elif suspended or world.running(1) is None or world.history[-1].get("stopping"):
            await finishing(world)
        else:
            await world.suspend(True)

    life = Life(World(api, namespace), user=user)
    await life.live()
    assert causes(life.world) == ["Suspended", "Finished"]


async def test_deleted_while_the_bucket_is_away(api: Cluster, namespace: str) -> None:
    async def user(world: World) -> None:
        if world.running(1) is not None:
            world.bucket.away = True
            await world.delete()
        elif world.last.get("phase") == "Deleting" and world.turns > 30:
            assert "trying again, for" in world.last["message"] or "waiting for" in world.last["message"]
            world.ahead += 60

    life = Life(World(api, namespace), user=user)
    await life.live()
    assert not await left_behind(life.world)
    assert [prefix for witness in life.witnesses for prefix in witness.left] == [life.world.last["prefix"]]


@pytest.mark.long
async def test_a_deleted_namespace_ends(cluster: Any, api: Cluster, hollow: str) -> None:
    """Without the help of anybody: what the namespace controller deletes, the operator lets go."""
    lives = []
    for turn in (12,):
        name = f"ending-{turn}"
        await asyncio.to_thread(cluster.kubectl, "create", "namespace", name)
        await asyncio.to_thread(wait_for_namespace, cluster, name)

        async def user(world: World, at: int = turn) -> None:
            if world.turns == at:
                await asyncio.to_thread(cluster.kubectl, "delete", "namespace", world.namespace, "--wait=false")
                world.touched = True
            elif world.turns > at:
                await asyncio.sleep(0.2)  # the namespace controller goes by the real clock
            else:
                await everything(world)

        lives.append(Life(World(api, name), user=user))
    await side_by_side(*lives)
    for life in lives:
        assert not await left_behind(life.world)
        asked = ("get", "namespace", life.world.namespace, "--ignore-not-found", "-o", "name")
        await asyncio.to_thread(
            eventually, lambda asked=asked: not cluster.kubectl(*asked), 60, f"{life.world.namespace} is gone"
        )


async def test_a_time_to_live_deletes_the_run_and_keeps_its_artifact(api: Cluster, namespace: str) -> None:
    world = World(api, namespace, ttlSecondsAfterFinished=60)
    world.deletes = False
    told: list[str] = []

    async def user(world: World) -> None:
        await finishing(world)
        if world.last.get("pruned"):
            told.append(world.last["message"])

    life = Life(world, user=user)
    await life.live()
    assert any("this resource is deleted at 20" in message for message in told)
    assert [one.reason for witness in life.witnesses for one in witness.announcements].count("Expired") == 1
    assert world.bucket.artifact
    assert not await left_behind(world)


async def test_only_what_was_looked_at_is_deleted(api: Cluster, namespace: str) -> None:
    made = await api.create(CONFIGMAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}, namespace)
    about = made["metadata"]
    changed = await api.json_patch(CONFIGMAPS, "x", namespace, [{"op": "add", "path": "/data", "value": {"a": "b"}}])
    assert changed is not None
    with pytest.raises(errors.Conflict):
        await api.delete(CONFIGMAPS, "x", namespace, uid=about["uid"], resource_version=about["resourceVersion"])
    assert await api.get(CONFIGMAPS, "x", namespace) is not None
    version = changed["metadata"]["resourceVersion"]
    await api.delete(CONFIGMAPS, "x", namespace, uid=about["uid"], resource_version=version)
    assert await api.get(CONFIGMAPS, "x", namespace) is None


async def test_an_edit_is_taken_up_by_the_next_attempt(api: Cluster, namespace: str) -> None:
    configs: dict[int, runconfig.RunConfig] = {}
    times: list[float] = []
    """When the edit was made, and when it was last seen to wait."""

    async def user(world: World) -> None:
        for number in (1, 2):
            if (pod := world.running(number)) is not None:
                variables = {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}
                configs[number] = runconfig.RunConfig.model_validate_json(variables[runconfig.ENV_RUN_CONFIG])
        if world.running(1) is not None and (world.run or {})["spec"]["checkpoint"].get("keep", 2) == 2:
            patch = [{"op": "add", "path": "/spec/checkpoint/keep", "value": 7}]
            await world.api.json_patch(RUNS, world.name, world.namespace, patch)
            world.touched = True
            times.append(world.clock())
        elif world.running(1) is not None and not world.history[0].get("stopping"):
            times[1:] = [world.clock()]
            world.ahead += 60
        else:
            await finishing(world)

    life = Life(World(api, namespace), user=user)
    await life.live()
    first, second = life.world.history
    assert (first["cause"], first["reason"], second["cause"]) == ("Moved", "SpecEdited", "Finished")
    assert times[1] - times[0] > 200, "without a checkpoint it waits for five minutes"
    assert (configs[1].checkpoint.keep, configs[2].checkpoint.keep) == (2, 7)
    assert not life.world.last.get("preemptions")


class PlayedKueue(Unreliable):
    """A MOCK of Kueue: its webhook, as far as its source says what it does to a plain pod; its controller is below.

    Kueue itself is not run: neither its quota nor its preemption is tested, only what they do to our pods.
    """

    async def create(self, resource: Any, body: Any, namespace: str | None = None) -> Any:
        if resource == PODS and "kueue.x-k8s.io/queue-name" in body["metadata"]["labels"]:
            metadata = body["metadata"]
            metadata = metadata | {"finalizers": [*metadata["finalizers"], KUEUE]}
            metadata["labels"] = metadata["labels"] | {KUEUE: "true"}
            body = body | {"metadata": metadata, "spec": body["spec"] | {"schedulingGates": [{"name": GATE}]}}
        return await super().create(resource, body, namespace)


async def kueue(world: World) -> None:
    """Play its controller: admit after some turns, take attempt 1 back, let go of what has ended."""
    for pod in world.pods:
        metadata = pod["metadata"]
        if pod["spec"].get("schedulingGates") and world.turns % 6 == 0:
            world.touched = True
            patch = [{"op": "add", "path": "/spec/schedulingGates", "value": []}]
            await world.api.json_patch(PODS, metadata["name"], world.namespace, patch)
        elif over(pod) and KUEUE in metadata.get("finalizers", ()):
            world.touched = True
            left = [one for one in metadata["finalizers"] if one != KUEUE]
            patch = [
                {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
                {"op": "add", "path": "/metadata/finalizers", "value": left},
            ]
            with contextlib.suppress(errors.Conflict):  # as a controller does, it tries again
                await world.api.json_patch(PODS, metadata["name"], world.namespace, patch)
    if (pod := world.running(1)) is not None:
        why = {"reason": "WorkloadEvicted", "message": "Preempted to accommodate a workload (UID: x)"}
        await world.condition(pod, {"type": "TerminationTarget", "status": "True", **why})
        await world.api.delete(PODS, pod["metadata"]["name"], world.namespace)
        return
    await finishing(world)


async def test_kueue_holds_a_pod_back_and_takes_it_away(api: Cluster, namespace: str) -> None:
    """With a MOCK of Kueue; see PlayedKueue."""
    waits: list[tuple[str, str]] = []
    world = World(api, namespace, queueName="team-queue")

    async def user(world: World) -> None:
        if world.last.get("activity") == "Queued":
            waits.append((world.last["phase"], world.last["message"]))
        await kueue(world)

    life = Life(world, user=user, hands=PlayedKueue(api, lambda *_: None))
    await life.live()
    assert waits
    assert {phase for phase, _ in waits} == {"Starting"}
    assert "waits for Kueue's queue team-queue" in waits[0][1]
    first, second = world.history
    assert (first["cause"], first["reason"], second["cause"]) == ("Preempted", "KueueEvicted", "Finished")
    assert "Preempted to accommodate a workload" in first["message"]
    assert not world.last.get("failures")
    assert not await left_behind(world)
