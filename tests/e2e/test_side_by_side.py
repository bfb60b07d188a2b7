"""Limits, fallbacks, moves and waits on the real control plane, all at once: most of each scene is waiting.

Every scene has its own namespace and pools. Trainers are played (see played_trainer), but for the run that publishes;
the autoscaler is played, too: its events are posted by hand, as its component would.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from examples.stage import REPOSITORY, TOLERATED, Stage, images
from localcluster.fixtures import wait_for_namespace
from localcluster.images import TRAINER
from tests.e2e.played_trainer import Part, prompt
from tests.e2e.test_money import seconds
from tests.e2e.test_run import LONG, Object, attempt_of, condition, lora_of, messages, pods, wait_for_phase

SOON = 150.0
USUAL = Part()
PATIENCE = "12s"
"""A pool's provisioningTimeout, in the place of ten minutes; below ten seconds no sign counts."""


@dataclass(frozen=True)
class Scene:
    """Where one scene is played."""

    stage: Stage
    home: str

    def pool(self, name: str, *, on_demand: bool = False, nodes: int = 0, gpus: int = 1, **spec: Any) -> str:
        """Make a pool, with nodes; return its name."""
        self.stage.cluster.apply(
            {
                "apiVersion": "lorafinetune.io/v1alpha1",
                "kind": "GPUPool",
                "metadata": {"name": name},
                "spec": {
                    "capacityType": "OnDemand" if on_demand else "Spot",
                    "nodeSelector": {"lorafinetune.io/demo-pool": name},
                    "tolerations": [{"key": key, "operator": "Exists"} for key in TOLERATED],
                    "gpu": {"product": "RTX-4090"},
                    "pricePerHour": "10" if on_demand else "0.1",
                    "provisioningTimeout": PATIENCE,
                    **spec,
                },
            }
        )
        for number in range(1, nodes + 1):
            self.node(f"{name}-{number}", name, on_demand=on_demand, gpus=gpus)
        return name

    def node(self, name: str, pool: str, *, on_demand: bool = False, gpus: int = 1, **spec: Any) -> None:
        self.stage.cluster.add_node(
            name,
            gpus=gpus,
            product="RTX-4090",
            pool=pool,
            labels={"lorafinetune.io/demo-pool": pool},
            cloud="eks-karpenter",
            capacity_type="on-demand" if on_demand else "spot",
            **spec,
        )

    def run(self, name: str, part: Part | None = USUAL, steps: int = LONG, **spec: Any) -> None:
        """Make a run, with a played trainer unless *part* is None."""
        dataset = {"dataset": {"instancePrompt": prompt(part)}} if part is not None else {}
        body = self.stage.run(self.home, name, **dataset, training={"steps": steps}, **spec)
        self.stage.cluster.apply(body)

    def patch(self, name: str, spec: Object) -> None:
        patch = json.dumps({"spec": spec})
        self.stage.cluster.kubectl("patch", "lft", name, "-n", self.home, "--type=merge", "-p", patch)

    def status(self, name: str) -> Object:
        return self.stage.status(self.home, name)

    def attempt(self, name: str, number: int) -> Object:
        return attempt_of(self.stage, self.home, name, number)

    def until(self, what: str, check: Callable[[], Any]) -> Any:
        """Wait for something, with the runs' attempts in the failure."""
        try:
            return self.stage.wait(what, check, SOON)
        except TimeoutError:
            runs = self.stage.cluster.get("lft", "-n", self.home)["items"]
            found = {one["metadata"]["name"]: one.get("status") for one in runs}
        raise TimeoutError(f"{self.home}: {what}: not within {SOON:.0f} s\n{json.dumps(found, indent=1)}")

    def said(self, name: str) -> str:
        """Return all messages that the operator logged of a run: Kubernetes events are told best effort."""
        lines = map(json.loads, self.stage.operator_log.read_text().splitlines())
        return "\n".join(one["message"] for one in lines if one.get("run") == f"{self.home}/{name}")

    def until_saved(self, name: str, number: int = 1) -> Object:
        """Wait until that attempt has committed a checkpoint; return it."""
        saved = lambda: (one := self.attempt(name, number)).get("durableStep") and one  # noqa: E731
        return dict(self.until(f"attempt {number} of {name} saves", saved))

    def until_trains(self, name: str, number: int) -> Object:
        """Wait until that attempt has done a step; return it."""

        def trains() -> Object | None:
            one = self.attempt(name, number)
            return one if (one.get("toStep") or 0) > (one.get("fromStep") or 0) else None

        return dict(self.until(f"attempt {number} of {name} trains", trains))

    def take(self, attempt: Object) -> None:
        """Take an attempt's pod away, as its platform does."""
        self.stage.cluster.kubectl("delete", "pod", attempt["pod"], "-n", self.home, "--wait=false")

    def autoscaler_says(self, pod: Object, reason: str, note: str) -> None:
        """Post an event on *pod* as the Cluster Autoscaler does."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.stage.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{pod['metadata']['name']}.{reason.lower()}", "namespace": self.home},
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod["metadata"]["name"],
                    "namespace": self.home,
                    "uid": pod["metadata"]["uid"],
                },
                "reason": reason,
                "message": note,
                "type": "Normal",
                "source": {"component": "cluster-autoscaler"},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
        )

    def pod_of(self, name: str, number: int = 1) -> Object:
        """Wait for an attempt's pod, and return it."""

        def found() -> Object | None:
            made = self.attempt(name, number).get("pod")
            return next((one for one in pods(self.stage, self.home) if one["metadata"]["name"] == made), None)

        return dict(self.until(f"attempt {number} of {name}", found))


def in_(wait: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=wait)).strftime("%Y-%m-%dT%H:%M:%SZ")


def reason_of(status: Object) -> str:
    return str(condition(status, "Running")["reason"]) if status.get("conditions") else ""


# The scenes


def limits_in_time(scene: Scene) -> None:
    """A deadline, and a longest duration, come while a run trains: it is stopped, saved, and fails with that reason."""
    pool = scene.pool("timed", nodes=1, gpus=2)
    part, placement = Part(every=LONG), {"pools": [pool]}
    scene.run("late", part, placement=placement, limits={"deadline": in_(7200)}, ttlSecondsAfterFinished=10)
    scene.run("long", part, placement=placement, limits={"maxDuration": "2h"})
    for name in ("late", "long"):
        scene.until_trains(name, 1)
    scene.patch("late", {"limits": {"deadline": in_(1)}})
    scene.patch("long", {"limits": {"maxDuration": "2s"}})
    late = wait_for_phase(scene.stage, scene.home, "late", "Failed")
    over = wait_for_phase(scene.stage, scene.home, "long", "Failed")
    for status, reason, words in (
        (late, "DeadlineExceeded", "not done by spec.limits.deadline"),
        (over, "MaxDurationReached", "not done within spec.limits.maxDuration (2s)"),
    ):
        assert condition(status, "Succeeded")["reason"] == reason, status["message"]
        assert words in status["message"]
        (only,) = status["attempts"]
        assert (only["cause"], only["exitCode"]) == ("LimitReached", 75), only
        saved = only["durableStep"]
        assert saved >= only["toStep"] - 1 > 0, "its work was saved"
        assert f"the checkpoint of step {saved} stays in the bucket" in status["message"]
    kept = scene.stage.keys(late["prefix"].removeprefix("s3://loras/"))
    assert any("/checkpoints/" in key for key in kept)

    # Its time to live is over: the resource goes, and what is no artifact with it. The other has none, and stays.
    scene.until("the first is deleted", lambda: scene.stage.get(scene.home, "late") is None)
    gone = time.time() - seconds(late["completionTime"])
    assert gone >= 9, "not before its time"
    assert scene.stage.keys(late["prefix"].removeprefix("s3://loras/")) == []
    scene.until("people are told why", lambda: messages(scene.stage, scene.home, "Expired"))
    assert scene.status("long")["phase"] == "Failed"


def publishes_at_a_deadline(scene: Scene) -> None:
    """With atLimit: Publish one more attempt publishes what there is: with the real trainer."""
    pool = scene.pool("published", nodes=1)
    limits = {"deadline": in_(7200), "atLimit": "Publish"}
    scene.run("modest", None, placement={"pools": [pool]}, limits=limits)
    first = scene.until_trains("modest", 1)
    scene.patch("modest", {"limits": {"deadline": in_(1)}})
    done = wait_for_phase(scene.stage, scene.home, "modest", "Failed")
    assert condition(done, "Succeeded")["reason"] == "DeadlineExceeded"
    first, second = done["attempts"]
    assert (first["cause"], second["cause"]) == ("LimitReached", "Finished")
    assert f"step {first['durableStep']} is published at" in done["message"]
    assert lora_of(scene.stage, done)


def no_progress(scene: Scene) -> None:
    """Taken away before every save: checkpoints come more often, then other capacity, then an end that says so."""
    spot, sure = scene.pool("barren", nodes=1), scene.pool("barren-sure", on_demand=True, nodes=1)
    scene.run(
        "fruitless",
        Part(saves=False),
        placement={"pools": [spot], "onDemand": {"pools": [sure], "afterPreemptions": 100}},
        limits={"attempts": {"withoutProgress": 3}},
        checkpoint={"everySteps": None},
    )
    told: list[float] = []
    for number in (1, 2, 3):
        attempt = scene.until_trains("fruitless", number)
        assert attempt["pool"] == (sure if number == 3 else spot), attempt
        told.append(usual_lifetime(scene.pod_of("fruitless", number)))
        scene.take(attempt)
    done = wait_for_phase(scene.stage, scene.home, "fruitless", "Failed")
    assert told[1] < told[0] / 3, f"it was to save more often: {told}"
    assert condition(done, "Succeeded")["reason"] == "NoProgress"
    assert "taken away 3 times" in done["message"]
    assert "with no new checkpoint in between: lower checkpoint.everySteps" in done["message"]
    assert [one["cause"] for one in done["attempts"]] == ["Preempted"] * 3
    words = (
        f"attempt 3 on pool {sure}, on demand after 2 attempts that were taken away before they had a new checkpoint"
    )
    assert words in scene.said("fruitless")


def usual_lifetime(pod: Object) -> float:
    environment = pod["spec"]["containers"][0]["env"]
    text = next(one["value"] for one in environment if one["name"] == "LORAFINETUNE_RUN_CONFIG")
    return float(json.loads(text)["checkpoint"]["lifetimeSeconds"])


def falls_back(scene: Scene) -> None:
    """On demand after so many preemptions, or where the deadline needs it; and where it does not, not."""
    spot, sure = scene.pool("taken", nodes=1, gpus=3), scene.pool("taken-sure", on_demand=True, nodes=1, gpus=2)
    on_demand = {"pools": [sure], "afterPreemptions": 1}
    scene.run("unlucky", placement={"pools": [spot], "onDemand": on_demand})
    placement = {"pools": [spot], "onDemand": {"pools": [sure]}}
    scene.run("hurried", steps=1000, placement=placement, limits={"deadline": in_(600)})
    scene.run("easy", steps=1000, placement=placement, limits={"deadline": in_(30 * 86400)})
    names = ("unlucky", "hurried", "easy")
    for name in names:
        scene.take(scene.until_saved(name))  # from then on it is known what a step takes
    assert [scene.until_trains(name, 2)["pool"] for name in names] == [sure, sure, spot]
    assert f"attempt 2 on pool {sure}, on demand after 1 preemptions" in scene.said("unlucky")
    assert f"attempt 2 on pool {sure}, on demand for limits.deadline needs it" in scene.said("hurried")


def returns_to_spot(scene: Scene) -> None:
    """Two runs went on demand when spot was dry. It comes back, with room for one: one moves to it, the other tries."""
    sure = scene.pool("last-sure", on_demand=True, nodes=1, gpus=2)
    spot = scene.pool("back")
    placement = {"pools": [spot], "onDemand": {"pools": [sure], "afterPending": "13s"}}  # by then it is dry
    names = ("one", "other")
    for name in names:
        scene.run(name, placement=placement)
    for name in names:
        scene.until_saved(name, 2)
        left, taken = scene.attempt(name, 1), scene.attempt(name, 2)
        assert (left["pool"], left["cause"], taken["pool"]) == (spot, "NoCapacity", sure)
        assert "of waiting for spot capacity" in left["message"], left
        assert "startTime" not in left, "it never had a node"
    scene.node("back-1", spot, gpus=2)
    scene.run("scout", placement={"pools": [spot]})  # by which the others know

    def both_settled() -> list[Object] | None:
        found = [scene.status(name)["attempts"] for name in names]
        settled = [one[-1].get("fromStep") is not None and len(one) >= 3 for one in found]
        return sorted(found, key=len) if all(settled) and {len(one) for one in found} == {3, 4} else None

    moved, tried = scene.until("one has moved, and one has tried to", both_settled)
    for attempts in (moved, tried):
        second, third = attempts[1:3]
        assert (second["cause"], second["reason"]) == ("Moved", "ReturningToSpot"), second
        assert f"moving from {sure} to {spot} at step" in second["message"]
        assert second["durableStep"] >= second["toStep"] - 1, "it moved at a checkpoint"
        assert third["pool"] == spot
    assert moved[2]["fromStep"] == moved[1]["durableStep"]
    assert (tried[2]["cause"], tried[3]["pool"]) == ("NoCapacity", sure), tried[2:]
    held = seconds(tried[2]["ended"]) - seconds(tried[2]["created"])
    assert held >= 10, "it gave the pool its time"
    assert tried[3]["fromStep"] == tried[1]["durableStep"]


def leaves_where_none_will_come(scene: Scene) -> None:
    """The autoscaler says that it makes no node for this pod: that is believed long before provisioningTimeout."""
    refusing, spare = scene.pool("refusing", provisioningTimeout="10m"), scene.pool("spare", nodes=1)
    scene.run("quick", placement={"pools": [refusing, spare]})
    no = "pod didn't trigger scale-up: 1 max node group size reached"
    scene.autoscaler_says(scene.pod_of("quick"), "NotTriggerScaleUp", no)
    left = scene.until("it goes elsewhere", lambda: (one := scene.attempt("quick", 1)).get("ended") and one)
    assert (left["cause"], left["reason"]) == ("NoCapacity", "PoolDry"), left
    assert "max node group size reached" in left["message"], left
    assert scene.until_trains("quick", 2)["pool"] == spare


def waits_for_a_node_that_is_made(scene: Scene) -> None:
    """While the autoscaler makes a node, that one is waited for, even after a patience that would have ended."""
    making, sure = scene.pool("making", provisioningTimeout="60s"), scene.pool("making-sure", on_demand=True, nodes=1)
    on_demand = {"pools": [sure], "afterPending": "40s"}
    scene.run("patient", placement={"pools": [making], "onDemand": on_demand, "returnToSpot": False})
    words = "pod triggered scale-up: [{group 0->1 (max: 3)}]"
    scene.autoscaler_says(scene.pod_of("patient"), "TriggeredScaleUp", words)
    waits = scene.until(
        "the wait is named", lambda: (now := scene.status("patient")).get("activity") == "ScalingUp" and now
    )
    assert "waits for a node that is being made, until" in waits["message"], waits["message"]
    left = scene.until("the node never came", lambda: (one := scene.attempt("patient", 1)).get("ended") and one)
    assert left["cause"] == "NoCapacity", left
    assert seconds(left["ended"]) - seconds(left["created"]) >= 59, "it left while its node was being made"
    assert scene.until_trains("patient", 2)["pool"] == sure


def avoids_a_broken_node(scene: Scene) -> None:
    """A node's disk is full: the next attempt goes to another one of the pool, and says which it keeps away from."""
    pool = scene.pool("worn", nodes=2)
    scene.run("careful", Part(disk_full=1), placement={"pools": [pool]})
    second = scene.until_trains("careful", 2)
    first = scene.attempt("careful", 1)
    assert (first["cause"], first["reason"]) == ("Infrastructure", "DiskFull"), first
    assert first["node"] in ("worn-1", "worn-2")
    assert second["node"] in {"worn-1", "worn-2"} - {first["node"]}
    affinity = json.dumps(scene.pod_of("careful", 2)["spec"]["affinity"]["nodeAffinity"])
    assert first["node"] in affinity, "by chance it is not there"
    assert not scene.status("careful").get("preemptions")


def holds_replacements(scene: Scene) -> None:
    """Four nodes fall silent at once: their attempts are not replaced at once, and go on when the nodes are back."""
    pool = scene.pool("silent")
    nodes = [f"silent-{number}" for number in range(1, 5)]
    with ThreadPoolExecutor(2) as adding:
        list(adding.map(lambda name: scene.node(name, pool, routes=[scene.stage.webhook_address]), nodes))
    names = [f"quiet-{number}" for number in range(1, 5)]
    for name in names:
        scene.run(name, placement={"pools": [pool]})
    for name in names:
        scene.until_saved(name)
    try:
        for node in nodes:
            scene.stage.cluster.faults.cut(node, pods=True)

        def held() -> list[str] | None:
            said = [one["message"] for one in map(scene.status, names) if reason_of(one) == "ReplacementHeld"]
            return said if len(said) == len(names) else None

        for message in scene.until("all replacements are held", held):
            assert "nodes with attempts went silent together" in message, message
            assert "waiting for a sign until" in message, message
        assert [len(scene.status(name)["attempts"]) for name in names] == [1] * 4
    finally:
        for node in nodes:
            scene.stage.cluster.faults.heal(node)
    for name in names:
        before = scene.attempt(name, 1)["toStep"]
        scene.until(f"{name} goes on", lambda name=name, before=before: scene.attempt(name, 1)["toStep"] > before)
        scene.until(f"{name} is heard", lambda name=name: reason_of(scene.status(name)) == "Training")
        assert len(scene.status(name)["attempts"]) == 1, "nobody was replaced"


SCENES: tuple[Callable[[Scene], None], ...] = (
    returns_to_spot,
    no_progress,
    limits_in_time,
    leaves_where_none_will_come,
    falls_back,
    avoids_a_broken_node,
)
LONG_SCENES = (waits_for_a_node_that_is_made, holds_replacements, publishes_at_a_deadline)


@pytest.fixture(scope="module")
def played(stage: Stage, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """Begin every scene that is wanted, and clear away what they leave."""
    wanted = {getattr(item, "callspec", None) and item.callspec.id for item in request.session.items}
    real = images()[TRAINER]
    path = f"{real.environment['PYTHONPATH']}:{REPOSITORY}"
    player = (sys.executable, "-m", "tests.e2e.played_trainer")
    mixed = replace(real, entrypoint=player, environment={**real.environment, "PYTHONPATH": path})
    stage.cluster.add_image(TRAINER, mixed.entrypoint, mixed.command, dict(mixed.environment))
    before = {node["metadata"]["name"] for node in stage.cluster.get("nodes")["items"]}
    homes: list[str] = []

    def home() -> str:
        homes.append(name := f"side-{secrets.token_hex(3)}")
        stage.cluster.kubectl("create", "namespace", name)
        wait_for_namespace(stage.cluster, name)
        stage.add_credentials(name)
        return name

    scenes = [scene for scene in (*SCENES, *LONG_SCENES) if scene.__name__ in wanted]
    with ThreadPoolExecutor(len(scenes)) as players:
        yield {scene.__name__: players.submit(lambda scene=scene: scene(Scene(stage, home()))) for scene in scenes}
    for one in homes:
        stage.cluster.kubectl("delete", "lft", "--all", "-n", one, "--wait=false")
    for one in homes:
        stage.cluster.kubectl("delete", "lft", "--all", "-n", one, "--timeout=50s")
        stage.cluster.kubectl("delete", "namespace", one, "--wait=false")
    added = {node["metadata"]["name"] for node in stage.cluster.get("nodes")["items"]} - before
    with ThreadPoolExecutor(4) as removing:
        list(removing.map(stage.cluster.remove_node, added))
    stage.cluster.add_image(TRAINER, real.entrypoint, real.command, dict(real.environment))


@pytest.mark.parametrize(
    "scene",
    [
        *(scene.__name__ for scene in SCENES),
        *(pytest.param(scene.__name__, marks=pytest.mark.long) for scene in LONG_SCENES),
    ],
)
def test_scene(scene: str, played: dict[str, Future[None]]) -> None:
    played[scene].result()
