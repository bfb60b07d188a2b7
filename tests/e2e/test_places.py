"""Where attempts run, on the real control plane: off a dry pool, and not more at once than a pool allows."""

from __future__ import annotations

from typing import Any

from examples.stage import TOLERATED, Stage
from tests.e2e.test_run import LONG, messages, pods, training, wait_for_attempt
from tests.e2e.test_strangers import stranger

Object = dict[str, Any]

SOON = 60.0


def add_pool(stage: Stage, name: str, nodes: str, **spec: Any) -> None:
    """Make a pool of the nodes that another pool of the stage has, or of none."""
    stage.cluster.apply(
        {
            "apiVersion": "lorafinetune.io/v1alpha1",
            "kind": "GPUPool",
            "metadata": {"name": name},
            "spec": {
                "capacityType": "Spot",
                "nodeSelector": {"lorafinetune.io/demo-pool": nodes},
                "tolerations": [{"key": key, "operator": "Exists"} for key in TOLERATED],
                "gpu": {"product": "RTX-4090"},
                "pricePerHour": "0.2",
                **spec,
            },
        }
    )


def reason(status: Object) -> str:
    found = [one["reason"] for one in status.get("conditions", ()) if one["type"] == "Running"]
    return found[0] if found else ""


def shown(stage: Stage, pool: str) -> Object:
    """Return what kubectl get gpool shows."""
    return dict(stage.cluster.get("gpupools", pool).get("status") or {})


def test_a_run_leaves_a_dry_pool_and_others_know(stage: Stage, home: str) -> None:
    add_pool(stage, "dried", "there-are-none", provisioningTimeout="12s")
    placement = {"placement": {"pools": ["dried", "spot"]}}
    stage.cluster.apply(stage.run(home, "first", **placement, **training(LONG)))
    waits = stage.wait(
        "the wait is named", lambda: reason(now := stage.status(home, "first")) == "Unschedulable" and now, SOON
    )
    assert "waits for a node until" in waits["message"]
    assert waits["activity"] == "NoNodeFits"
    status = wait_for_attempt(stage, home, "first", 2)
    left, taken = status["attempts"]
    assert (left["pool"], left["cause"], left["reason"]) == ("dried", "NoCapacity", "PoolDry"), left
    assert "going to spot" in left["message"], left
    assert "startTime" not in left, "it never had a node"
    assert taken["pool"] == "spot"
    assert status.get("preemptions", 0) == 0
    assert messages(stage, home, "PoolDry")

    stage.cluster.apply(stage.run(home, "second", **placement, **training(LONG)))
    board = stage.wait("people are shown that", lambda: (one := shown(stage, "dried")).get("state") == "Dry" and one)
    assert "0/" in board["message"], "the scheduler's sentence"
    assert board["drySince"] == left["dry"]
    other = stage.wait("the second run's attempt", lambda: stage.status(home, "second").get("attempts"), SOON)
    assert other[0]["pool"] == "spot", "what one run has found out, the others need not"


def test_no_more_attempts_than_a_pool_allows(stage: Stage, home: str) -> None:
    add_pool(stage, "narrow", "spot", maxConcurrentAttempts=1)
    placement = {"placement": {"pools": ["narrow"]}}
    names = ["one", "two", "three"]
    stage.cluster.apply(stranger("forged", home, uid="no-such-run", attempt="1", pool="narrow"))
    stage.cluster.apply(*(stage.run(home, name, **placement, **training(LONG)) for name in names))

    def placed() -> list[str]:
        return [name for name in names if stage.status(home, name).get("attempts")]

    def waiting() -> list[Object]:
        found = [stage.status(home, name) for name in names]
        return [one for one in found if reason(one) == "PoolFull"]

    full = stage.wait("two runs wait for room", lambda: len(found := waiting()) == 2 and found, SOON)
    assert "maxConcurrentAttempts" in full[0]["message"]
    assert full[0]["activity"] == "PoolFull"
    (holder,) = (name for pod in pods(stage, home) if (name := pod["metadata"]["name"]) != "forged")
    assert f"narrow (1: {holder})" in full[0]["message"], "who holds the place, and that is not the forged pod"
    stage.wait("people are shown that", lambda: shown(stage, "narrow").get("state") == "Full")
    first = placed()
    assert len(first) == 1
    stage.cluster.kubectl(
        "patch", "lft", first[0], "-n", home, "--type=merge", "-p", '{"spec": {"suspend": true}}'
    )  # fmt: skip
    stage.wait("the freed place is taken", lambda: len(placed()) == 2, SOON)
    living = [pod for pod in pods(stage, home) if pod["status"].get("phase") in ("Pending", "Running")]
    assert {pod["metadata"]["name"] for pod in living} >= {"forged"}
    assert len(living) == 2, "not two"
