"""The census of nodes with attempts, against a count by hand over random histories."""

from __future__ import annotations

import random
from typing import Any

from lorafinetune.census import FLAPPING, Census
from lorafinetune.engine.silence import RECENT, SETTLING
from lorafinetune.engine.times import stamp
from lorafinetune.kube.store import Change, Store, key_of

NOW = 1_800_000_000.0


class World:
    """Pods and nodes as the stores hold them, and the census that was told of every change."""

    def __init__(self) -> None:
        self.now = NOW
        self.version = 0
        self.pods, self.nodes = Store(), Store()
        self.census = Census(self.nodes.get, lambda: self.now)

    def _thing(self, name: str, **rest: Any) -> dict[str, Any]:
        self.version += 1
        return {"metadata": {"name": name, "uid": name, "resourceVersion": str(self.version)}, **rest}

    def node(self, name: str, ready: bool | None) -> None:
        if ready is None:
            old = self.nodes.get(name)
            change = self.nodes.take("DELETED", self._thing(name)) if old is not None else None
        else:
            mark = {"type": "Ready", "status": str(ready), "lastTransitionTime": stamp(self.now)}
            change = self.nodes.take("MODIFIED", self._thing(name, status={"conditions": [mark]}))
        if change is not None:
            self.census.node_changed(name)

    def pod(self, name: str, node: str | None, phase: str | None) -> None:
        if phase is None:
            change = self.pods.take("DELETED", self._thing(name))
        else:
            change = self.pods.take("MODIFIED", self._thing(name, spec={"nodeName": node}, status={"phase": phase}))
        if change is not None:
            self.census.pod_changed(change)

    def counted(self) -> tuple[int, int]:
        used = {
            pod["spec"]["nodeName"]
            for pod in self.pods
            if pod["spec"].get("nodeName") and pod["status"]["phase"] in ("Pending", "Running")
        }

        def is_silent(name: str) -> bool:
            found = self.nodes.get(name)
            return found is None or found["status"]["conditions"][0]["status"] != "True"

        return len(used), sum(is_silent(name) for name in used)


def test_it_counts_what_is_there_whatever_the_order() -> None:
    dice = random.Random(5)
    for _ in range(100):
        world = World()
        for _ in range(60):
            world.now += dice.random()
            if dice.random() < 0.4:
                world.node(f"node-{dice.randrange(4)}", dice.choice([True, False, None]))
            else:
                node = dice.choice([None, *(f"node-{one}" for one in range(4))])
                world.pod(f"pod-{dice.randrange(6)}", node, dice.choice(["Pending", "Running", "Failed", None]))
            seen = world.census.cluster(0.0)
            nodes, silent = world.counted()
            assert seen.nodes == nodes >= seen.silent >= silent
        world.now += SETTLING
        seen = world.census.cluster(0.0)
        assert (seen.nodes, seen.silent) == world.counted()


def test_nodes_that_come_back_one_by_one_count_as_silent_for_a_while() -> None:
    """Else the last ones of a partition that heals would be replaced in the moment in which all come back."""
    world = World()
    names = [f"node-{number}" for number in range(4)]
    for name in names:
        world.node(name, ready=True)
        world.pod(f"pod-on-{name}", name, "Running")
    for name in names:
        world.node(name, ready=False)
    world.now += 40
    for name in names[:3]:
        world.node(name, ready=True)
        world.now += 1
    assert world.census.cluster(0.0).silent == 4
    world.node(names[0], ready=False)
    assert world.census.cluster(0.0).silent == 4, "silent again, it is counted once"
    world.pod(f"pod-on-{names[1]}", names[1], "Failed")
    assert world.census.cluster(0.0).silent == 3, "nobody's trainer is on it any more"
    world.now += SETTLING
    assert world.census.cluster(0.0).silent == 2
    world.now += RECENT
    world.node(names[3], ready=True)
    assert world.census.cluster(0.0).silent == 0, "long dead, it is no part of anything new"


def test_a_census_that_begins_late_counts_the_same() -> None:
    world = World()
    world.node("node-1", ready=False)
    world.pod("pod-1", "node-1", "Running")
    late = Census(world.nodes.get, lambda: world.now)
    late.begin(world.pods)
    seen = late.cluster(0.0)
    assert (seen.nodes, seen.silent, seen.unbroken_since) == (1, 1, NOW)


def test_old_silences_are_no_partition_of_today() -> None:
    world = World()
    world.pod("pod-1", "node-1", "Running")
    world.node("node-1", ready=False)
    world.now += RECENT + 1
    assert world.census.cluster(0.0).silent == 0


def test_a_view_that_breaks_again_and_again_holds_nothing_for_ever() -> None:
    world = World()
    world.census.begin([])
    began = world.now
    for _ in range(20):
        world.now += 20
        seen = world.census.cluster(resumed_at=world.now)
        assert seen.unbroken_since in (began, began + FLAPPING)
    assert seen.unbroken_since == began + FLAPPING


def test_a_vanished_pod_takes_its_node_with_it() -> None:
    world = World()
    world.pod("pod-1", "node-1", "Running")
    world.census.pod_changed(Change(key_of(world.pods.values()[0]), world.pods.values()[0], None))
    assert world.census.cluster(0.0).nodes == 0
