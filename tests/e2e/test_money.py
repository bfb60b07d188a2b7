"""What a run may cost and what it cost, on the real control plane: limits, publishing at one, and the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest

from examples.stage import Stage, lines_of
from localcluster import binaries
from tests.e2e.test_run import LONG, condition, lora_of, training, wait_for_phase

Object = dict[str, Any]

HOURLY = 360.0
"""A price at which a second costs ten cents."""
PREEMPTIONS, KILLS = 20, 5


@pytest.fixture(scope="module")
def dear(stage: Stage) -> Iterator[str]:
    stage.add_pool("dear", price=f"{HOURLY:.0f}", default=False)
    stage.add_node("dear-1", "dear", cloud="eks-karpenter", capacity_type="spot")
    yield "dear"
    stage.cluster.remove_node("dear-1")


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def cost(status: Object) -> float:
    return float(status["cost"].removeprefix("$"))


def test_at_its_cost_a_run_is_stopped_saved_and_published(stage: Stage, home: str, dear: str) -> None:
    limits = {"maxCost": "2.00", "atLimit": "Publish"}
    stage.cluster.apply(stage.run(home, "thrifty", placement={"pools": [dear]}, limits=limits, **training(LONG)))
    done = wait_for_phase(stage, home, "thrifty", "Failed")
    succeeded = condition(done, "Succeeded")
    assert (succeeded["status"], succeeded["reason"]) == ("False", "MaxCostReached"), done["message"]
    first, *tries = done["attempts"]
    assert first["cause"] == "LimitReached", first
    assert first["durableStep"] >= first["toStep"] - 1 > 0, "its work was saved"
    held = seconds(first["ended"]) - seconds(first["scheduled"])
    saving = seconds(first["ended"]) - seconds(done["limit"]["time"])
    assert held - saving <= 20 * 1.02 + 1, "it was told to stop as soon as the money was spent"
    assert tries[-1]["cause"] == "Finished", "the one that publishes"
    assert tries[-1].get("toStep", first["durableStep"]) == first["durableStep"], "and trains nothing"
    assert lora_of(stage, done)
    assert f"step {first['durableStep']} is published at" in done["message"]
    assert cost(done) == pytest.approx(sum(float(one["cost"]) for one in done["attempts"]), abs=0.01)


BOUND = '{.status.conditions[?(@.type=="PodScheduled")].lastTransitionTime}'
ENDED = "{.status.containerStatuses[0].state.terminated.finishedAt}"


@contextmanager
def watched(stage: Stage, home: str) -> Iterator[dict[str, tuple[float, float]]]:
    """Note when each pod got its node and when its container ended, as the pods themselves say."""
    truth: dict[str, tuple[float, float]] = {}
    kubectl = [str(binaries.find("kubectl")), "--kubeconfig", str(stage.cluster.kubeconfig)]
    path = f"jsonpath={{.metadata.name}} {BOUND} {ENDED}{{'\\n'}}"
    with lines_of([*kubectl, "get", "pods", "-n", home, "--watch", "-o", path]) as watch:

        def read() -> None:
            assert watch.stdout is not None
            for line in watch.stdout:
                name, *times = line.split()
                if len(times) == 2:
                    truth[name] = (seconds(times[0]), seconds(times[1]))

        thread = threading.Thread(target=read)
        thread.start()
        yield truth
        watch.terminate()
        thread.join()


@pytest.mark.long
def test_the_ledger_is_that_of_the_pods_over_twenty_preemptions_and_five_killed_operators(
    stage: Stage, home: str, dear: str
) -> None:
    """Each attempt commits a checkpoint and is taken away; at every fourth the operator is killed while it is."""
    stage.cluster.apply(stage.run(home, "counted", placement={"pools": [dear]}, **training(LONG)))
    with watched(stage, home) as truth:
        for number in range(1, PREEMPTIONS + 1):

            def trains(number: int = number) -> Object | None:
                status = stage.status(home, "counted")
                newest = (status.get("attempts") or [{}])[-1]
                got = newest.get("number") == number and (newest.get("toStep") or 0) > (newest.get("fromStep") or 0)
                return newest if got else None

            attempt = stage.wait(f"attempt {number} trains", trains, 120)
            killed = number % (PREEMPTIONS // KILLS) == 0
            if killed:
                stage.kill_operator()
            stage.cluster.kubectl("delete", "pod", attempt["pod"], "-n", home, "--wait=false")
            stage.wait(f"the end of {attempt['pod']} is seen", lambda name=attempt["pod"]: name in truth, 90)
            if killed:
                stage.start_operator()
        stage.cluster.kubectl(
            "patch", "lft", "counted", "-n", home, "--type=merge", "-p", '{"spec":{"suspend":true}}'
        )  # the last one ends too, so that nothing grows any more
        done = stage.wait(
            "suspended",
            lambda: (now := stage.status(home, "counted")).get("message", "").startswith("suspended by") and now,
            90,
        )
    held = {name: end - begin for name, (begin, end) in truth.items()}
    assert len(held) >= PREEMPTIONS
    assert done["preemptions"] == PREEMPTIONS
    assert cost(done) == pytest.approx(sum(held.values()) * HOURLY / 3600, rel=0.02)
    assert done["totals"]["attempts"] + len(done["attempts"]) == len(held)
    (lost,) = (one for one in done["lost"] if one["cause"] == "Preempted")
    assert lost["attempts"] == PREEMPTIONS
    assert float(done["onDemandCost"].removeprefix("$")) == pytest.approx(cost(done) / HOURLY * 1.006, rel=0.02)
