"""Who takes the places of pools: counted as news comes, against what the stores hold."""

from __future__ import annotations

import random
from typing import Any

from lorafinetune.engine.decision import CreatePod, Decision
from lorafinetune.engine.observation import RunSeen
from lorafinetune.engine.pools import Waiting, choose
from lorafinetune.kube import pods, seen
from lorafinetune.kube.store import Store
from lorafinetune.kube.stores import NamespacedStore
from lorafinetune.places import Places, filed
from tests.unit.engine import given

Object = dict[str, Any]
SINCE = "2026-11-23T08:00:00Z"


class World:
    """Runs and pods as the stores hold them, and places that were told of every change."""

    def __init__(self) -> None:
        self.version = 0
        self.pods, self.runs = Store(index=filed), Store(index=lambda run: [run["metadata"]["uid"]])
        self.places = Places(NamespacedStore({None: self.pods}), self.runs)

    def about(self, name: str) -> RunSeen:
        return RunSeen("team", name, f"{name}-0000-uid", 1, 0.0)

    def run(self, name: str, *attempts: Object, kind: str = "MODIFIED") -> str | None:
        self.version += 1
        about = {"namespace": "team", "name": name, "uid": self.about(name).uid, "creationTimestamp": SINCE}
        metadata = about | {"resourceVersion": str(self.version)}
        self.runs.take(kind, {"metadata": metadata, "spec": {}, "status": {"attempts": list(attempts)}})
        return self.places.changed(metadata["uid"])

    def pod(self, name: str, number: int, pool: str = "spot", *, node: str | None = "a", **changes: Any) -> str | None:
        create = CreatePod(number, pool, given.pool(), None, None)
        made = pods.build(self.about(name), given.spec(), create, pods.Trainer(image="trainer"))
        made["metadata"] |= {"uid": f"{name}-{number}", "creationTimestamp": SINCE} | changes.get("metadata", {})
        return self.take(made | {"spec": {"nodeName": node}, "status": {"phase": changes.get("phase", "Running")}})

    def take(self, pod: Object, kind: str = "MODIFIED") -> str | None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.pods.take(kind, pod)
        return self.places.changed(pod["metadata"]["labels"][seen.LABEL_RUN_UID])

    def live(self, pool: str = "spot") -> int:
        known = self.places.fleet([pool]).get(pool)
        return known.live if known is not None else 0

    def waiting(self, pool: str = "spot") -> int:
        known = self.places.fleet([pool]).get(pool)
        return known.waiting if known is not None else 0


def test_what_anybody_labels_takes_no_place() -> None:
    world = World()
    world.run("one")
    world.pod("one", 1, metadata={"ownerReferences": []})
    world.pod("one", 2, metadata={"namespace": "elsewhere"})
    world.pod("nobody", 1)
    assert world.live() == 0
    world.pod("one", 3)
    assert (world.live(), world.waiting()) == (1, 0)
    assert world.places.fleet(["spot"])["spot"].holders == ("team/one-one-0-3",)


def test_a_pod_takes_its_place_before_its_attempt_is_written_down_and_none_after_its_end_is() -> None:
    """As that of a lost node does, which stays, deleted and never over, for as long as its Node object is there."""
    world = World()
    world.run("one")
    world.pod("one", 1, node=None)
    assert (world.live(), world.waiting()) == (1, 1)
    world.pod("one", 1, metadata={"deletionTimestamp": SINCE})
    world.run("one", {"number": 1})
    assert (world.live(), world.waiting()) == (1, 0)
    world.run("one", {"number": 1, "cause": "NodeLost"})
    assert world.live() == 0
    world.pod("one", 2)
    assert world.live() == 1
    world.run("one", {"number": 3})
    assert world.live() == 0, "an attempt that only the totals remember"


def test_who_waits_is_told_of_a_place_that_an_end_has_freed() -> None:
    world = World()
    world.run("one", {"number": 1})
    world.pod("one", 1)
    seen_now = given.seen(pools={"spot": given.pool(most=1)}, fleet=world.places.fleet(["spot"]), run={"uid": "waiter"})
    choice = choose(seen_now, seen_now.status)
    assert isinstance(choice, Waiting)
    with world.places.kept(seen_now, Decision(choice.reason, choice.message, seen_now.status)):
        pass
    assert world.pod("one", 1, phase="Pending") is None
    assert world.run("one", {"number": 1, "cause": "NodeLost"}) == "waiter"


def test_a_place_is_kept_for_a_pod_that_is_being_made_and_counted_once_when_it_is_there() -> None:
    world = World()
    world.run("one")
    about = world.about("one")
    seen_now = given.seen(run={"uid": about.uid, "name": "one", "namespace": "team"})
    create = CreatePod(1, "spot", given.pool(), None, None)
    with world.places.kept(seen_now, Decision("AttemptCreated", "", seen_now.status, (create,))):
        assert world.live() == 1
        made = pods.build(about, given.spec(), create, pods.Trainer(image="trainer"))
        world.version += 1
        made["metadata"] |= {"uid": "u", "creationTimestamp": SINCE, "resourceVersion": str(world.version)}
        world.pods.learn(made)  # as the loop's own writes come: without news
        assert world.live() == 1
        assert world.live() == 1
    assert world.live() == 1


def test_the_count_is_that_of_the_stores_over_random_histories() -> None:
    for seed in range(10):
        chance, world = random.Random(seed), World()
        cause: dict[tuple[str, int], bool] = {}
        there: set[str] = set()
        for _ in range(120):
            name, number = chance.choice("abcde"), chance.randint(1, 3)
            match chance.randrange(4):
                case 0:
                    world.pod(name, number, chance.choice(["spot", "other"]), node=chance.choice([None, "a"]))
                case 1:
                    world.pod(name, number, phase=chance.choice(["Running", "Failed"]))
                case 2:
                    kind = "DELETED" if chance.random() < 0.3 else "MODIFIED"
                    booked = [{"number": one, **({"cause": "X"} if chance.random() < 0.5 else {})} for one in (1, 2)]
                    world.run(name, *booked, kind=kind)
                    cause |= {(name, one["number"]): "cause" in one for one in booked}
                    (there.discard if kind == "DELETED" else there.add)(name)
                case _:
                    found = [pod for pod in world.pods if pod["metadata"]["uid"] == f"{name}-{number}"]
                    for pod in found:
                        world.take({**pod, "metadata": dict(pod["metadata"])}, "DELETED")
            want: dict[str, list[bool]] = {"spot": [], "other": []}
            for pod in world.pods:
                owner, _, attempt = pod["metadata"]["uid"].rpartition("-")
                if owner in there and pod["status"]["phase"] == "Running" and not cause.get((owner, int(attempt))):
                    want[seen.pool_of(pod)].append(seen.waits(pod))
            for pool, waits in want.items():
                assert (world.live(pool), world.waiting(pool)) == (len(waits), sum(waits)), seed
