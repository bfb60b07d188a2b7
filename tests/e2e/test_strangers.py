"""Objects that anybody may make end neither the operator nor a run, and are not touched."""

from __future__ import annotations

from typing import Any

from examples.stage import Stage
from tests.e2e.test_run import LONG, pods, step_of, training, wait_for_step

Object = dict[str, Any]
UID, ATTEMPT, POOL = "lorafinetune.io/run-uid", "lorafinetune.io/attempt", "lorafinetune.io/pool"


def stranger(name: str, namespace: str, **labels: str) -> Object:
    """A pod that no node takes, with labels of ours."""
    known = {"uid": UID, "attempt": ATTEMPT, "pool": POOL}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {known[key]: labels[key] for key in labels}},
        "spec": {"nodeSelector": {"no-such": "node"}, "containers": [{"name": "any", "image": "any"}]},
    }


def test_pods_that_carry_our_labels(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "known", **training(LONG)))
    before = wait_for_step(stage, home, "known", 2)
    run = stage.get(home, "known")
    assert run is not None
    uid = run["metadata"]["uid"]
    strangers = [
        stranger("of-no-run", home, uid="no-such-run"),
        stranger("of-nobody", home, uid=""),
        stranger("no-attempt", home, uid=uid),
        stranger("odd-attempt", home, uid=uid, attempt="x"),
        stranger("copied", home, uid=uid, attempt="1"),
        stranger("usurper", "default", uid=uid, attempt="999"),
        stranger(f"known-{uid[:5]}-7", home, uid=uid, attempt="7", pool="spot"),
    ]
    try:
        stage.cluster.apply(*strangers)
        wait_for_step(stage, home, "known", before + 10)
        assert step_of(stage, home, "known") > before
        assert stage.status(home, "known")["attempt"] == 1
        assert stage.restarts == 0
        names = {one["metadata"]["name"] for one in pods(stage, home) + pods(stage, "default")}
        assert {one["metadata"]["name"] for one in strangers} <= names
        stage.cluster.kubectl("delete", "lft", "known", "-n", home, "--timeout=60s")
        left = {one["metadata"]["name"] for one in pods(stage, home)}
        assert {"no-attempt", "odd-attempt", "copied", f"known-{uid[:5]}-7"} <= left
    finally:
        stage.cluster.kubectl("delete", "pod", "usurper", "-n", "default", "--now", "--ignore-not-found")
