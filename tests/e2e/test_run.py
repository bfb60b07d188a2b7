"""Whole runs on the real control plane, with real processes killed for real: each promise, seen from outside."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from examples.stage import LORAS, Stage, lines_of
from localcluster import binaries
from lorafinetune.contract.head import Head
from lorafinetune.contract.layout import Location
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket, Credentials

Object = dict[str, Any]

STEPS, EVERY = 30, 10
LONG = 100_000
"""Steps of a run that is not meant to end."""
PAUSE = 240.0


def training(steps: int = STEPS) -> Object:
    return {"training": {"steps": steps}, "checkpoint": {"everySteps": EVERY}}


def step_of(stage: Stage, home: str, name: str) -> int:
    return int(stage.status(home, name).get("step") or 0)


def wait_for_step(stage: Stage, home: str, name: str, step: int) -> int:
    return stage.wait(f"{name} at step {step}", lambda: (now := step_of(stage, home, name)) >= step and now, PAUSE, 0.1)


def wait_for_phase(stage: Stage, home: str, name: str, phase: str) -> Object:
    return stage.wait(
        f"{name} {phase}", lambda: (status := stage.status(home, name)).get("phase") == phase and status, PAUSE
    )


def wait_for_attempt(stage: Stage, home: str, name: str, number: int) -> Object:
    """Wait until that attempt, or a later one, trains, and return the status."""

    def trains() -> Object | None:
        status = stage.status(home, name)
        running = {one["type"]: one["status"] for one in status.get("conditions", ())}.get("Running")
        return status if (status.get("attempt") or 0) >= number and running == "True" else None

    return stage.wait(f"attempt {number} of {name} trains", trains, PAUSE)


def pods(stage: Stage, home: str) -> list[Object]:
    return stage.cluster.get("pods", "-n", home)["items"]


def condition(status: Object, kind: str) -> Object:
    return next(one for one in status["conditions"] if one["type"] == kind)


def lora_of(stage: Stage, status: Object) -> bytes:
    key = (status["artifact"]["uri"] + status["artifact"]["file"]).removeprefix(f"s3://{LORAS}/")
    return stage.cluster.s3.client().get_object(Bucket=LORAS, Key=key)["Body"].read()


def messages(stage: Stage, home: str, reason: str) -> list[str]:
    events = stage.cluster.get("events.events.k8s.io", "-n", home)["items"]
    return [one["note"] for one in events if one["reason"] == reason]


@contextmanager
def watched_pods(stage: Stage, home: str) -> Iterator[list[str]]:
    """Note every moment at which two attempts of one run could run at once, on nodes that can be seen."""
    doubled: list[str] = []
    leaving = threading.Event()

    def watch() -> None:
        while not leaving.wait(0.2):
            ready = {
                node["metadata"]["name"]
                for node in stage.cluster.get("nodes")["items"]
                if any(
                    one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", ())
                )
            }
            live: dict[str, list[str]] = {}
            for pod in pods(stage, home):
                if pod["status"]["phase"] in ("Pending", "Running") and pod["spec"].get("nodeName") in ready:
                    live.setdefault(pod["metadata"]["labels"]["lorafinetune.io/run"], []).append(
                        pod["metadata"]["name"]
                    )
            doubled.extend(f"{run}: {names}" for run, names in live.items() if len(names) > 1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield doubled
    finally:
        leaving.set()
        thread.join()


def test_two_preemptions_lose_at_most_what_is_promised_and_no_byte_differs(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "calm", **training()), stage.run(home, "timber", **training()))
    with watched_pods(stage, home) as doubled:
        wait_for_step(stage, home, "timber", 3)
        node = next(pod["spec"]["nodeName"] for pod in pods(stage, home) if "timber" in pod["metadata"]["name"])
        stage.cluster.faults.preempt(node, notice=20, replace_after=0.5)
        second = wait_for_attempt(stage, home, "timber", 2)
        first = second["attempts"][0]
        assert first["cause"] == "Preempted", first
        assert first["exitCode"] == 75, first
        resumed = stage.wait(
            "the resume is told", lambda: attempt_of(stage, home, "timber", 2).get("fromStep") is not None
        )
        assert resumed
        from_step = attempt_of(stage, home, "timber", 2)["fromStep"]
        assert first["toStep"] - from_step <= 1, "with notice, no more than one step is lost"
        assert from_step >= 3

        wait_for_step(stage, home, "timber", EVERY + 3)
        before = attempt_of(stage, home, "timber", 2)
        stage.cluster.faults.kill(before["node"], replace_after=0.5)
        wait_for_attempt(stage, home, "timber", 3)
        stage.wait("the resume is told", lambda: attempt_of(stage, home, "timber", 3).get("fromStep") is not None)
        killed, third = attempt_of(stage, home, "timber", 2), attempt_of(stage, home, "timber", 3)
        assert killed["cause"] in ("Preempted", "NodeLost"), killed
        assert killed["toStep"] - third["fromStep"] <= EVERY, "without notice, no more than the interval is lost"
        done = wait_for_phase(stage, home, "timber", "Succeeded")
        calm = wait_for_phase(stage, home, "calm", "Succeeded")
    assert not doubled
    assert done["preemptions"] == 2
    assert calm["preemptions"] == 0
    assert len(done["attempts"]) == 3
    assert condition(done, "Succeeded")["status"] == "True"
    told = messages(stage, home, "Preempted")
    assert len(told) == 2, told
    stage.cluster.kubectl("wait", "--for=condition=Succeeded", "lft/timber", "-n", home, "--timeout=5s")

    one, other = lora_of(stage, done), lora_of(stage, calm)
    assert hashlib.sha256(one).hexdigest() == done["artifact"]["sha256"] == calm["artifact"]["sha256"]
    assert one == other, "the LoRA of a preempted run is, byte for byte, that of an undisturbed one"
    assert any(byte != 0 for byte in one[-4096:])


def attempt_of(stage: Stage, home: str, name: str, number: int) -> Object:
    attempts = stage.status(home, name).get("attempts", ())
    return next((one for one in attempts if one["number"] == number), {})


def test_operator_killed(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "steady", **training()))
    seen = wait_for_step(stage, home, "steady", 3)
    stage.kill_operator()
    time.sleep(2)  # the trainer goes on without it
    stage.start_operator()
    done = wait_for_phase(stage, home, "steady", "Succeeded")
    assert done["step"] == STEPS >= seen
    assert [one["number"] for one in done["attempts"]] == [1], "no second attempt was made"
    assert len(pods(stage, home)) == 1


def test_api_server_killed(stage: Stage, home: str) -> None:
    """A pod vanishes while the API server is away: noticed after its return, and the run goes on."""
    stage.cluster.apply(stage.run(home, "lasting", **training(LONG)))
    wait_for_step(stage, home, "lasting", EVERY + 1)
    (pod,) = pods(stage, home)
    name = pod["metadata"]["name"]
    stage.cluster.faults.kill_api_server()
    stage.cluster.faults.start_api_server()
    patch = json.dumps({"metadata": {"finalizers": None}})
    stage.cluster.kubectl("patch", "pod", name, "-n", home, "--type=merge", "-p", patch)
    stage.cluster.kubectl("delete", "pod", name, "-n", home, "--grace-period=0", "--force")
    stage.cluster.faults.compact()
    status = wait_for_attempt(stage, home, "lasting", 2)
    assert status["attempts"][0]["cause"] == "Preempted", status["attempts"][0]
    assert status["step"] >= EVERY
    # The node may refuse the second attempt while the first one's process still holds the GPU: then it is a later one.
    assert all(one["cause"] in ("Preempted", "Infrastructure") for one in status["attempts"][:-1]), status["attempts"]
    newest = status["attempt"]
    stage.wait("the resume is told", lambda: attempt_of(stage, home, "lasting", newest).get("fromStep") is not None)
    assert attempt_of(stage, home, "lasting", newest)["fromStep"] >= EVERY


def test_partitioned_attempt_cannot_commit(stage: Stage, home: str) -> None:
    """A node is cut off from the cluster, but not from the bucket: its trainer goes on, and must be fenced."""
    stage.add_pool("far", price="0.2", default=False)
    address = stage.webhook_address
    stage.add_node("far-1", "far", cloud="eks-karpenter", capacity_type="spot", routes=[address])
    try:
        stage.cluster.apply(stage.run(home, "zombie", placement={"pools": ["far"]}, **training(LONG)))
        wait_for_step(stage, home, "zombie", 3)
        place = stage.status(home, "zombie")["prefix"].removeprefix(f"s3://{LORAS}/")
        stage.cluster.faults.cut("far-1", pods=True)
        stage.add_node("far-2", "far", cloud="eks-karpenter", capacity_type="spot")
        status = wait_for_attempt(stage, home, "zombie", 2)
        assert status["attempts"][0]["cause"] == "NodeLost", status["attempts"][0]
        head = head_of(stage, place)
        assert head.attempt == 2
        committed = {one.step for one in head.checkpoints if one.attempt == 1}

        with watched_exit_codes(stage, home, status["attempts"][0]["pod"]) as codes:
            stage.cluster.faults.heal("far-1")
            stage.wait("the zombie's end is seen", lambda: codes, 60)
        assert set(codes) == {76}, "the old attempt ended because it was fenced"
        head = head_of(stage, place)
        assert head.attempt == 2
        assert {one.step for one in head.checkpoints if one.attempt == 1} <= committed
        assert stage.status(home, "zombie")["attempt"] == 2
    finally:
        stage.cluster.faults.heal("far-1")  # a node that is cut off lets no pod go
        stage.cluster.kubectl("delete", "lft", "zombie", "-n", home, "--timeout=50s", "--ignore-not-found")
        for node in ("far-1", "far-2"):
            stage.cluster.remove_node(node)
    assert stage.keys(place) == []


def head_of(stage: Stage, place: str) -> Head:
    """Read a run's head as the product does, which takes no head that is just being swapped."""
    s3 = stage.cluster.s3
    keys = Credentials(s3.access_key, s3.secret_key)
    head = stored.read(Bucket(Location(LORAS, place), endpoint=s3.endpoint, credentials=keys)).head
    assert head is not None
    return head


@contextmanager
def watched_exit_codes(stage: Stage, home: str, pod: str) -> Iterator[list[int]]:
    """Note the exit codes that a pod's trainer is reported with: such a pod is gone as soon as its node is back."""
    path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}{'\\n'}"
    kubectl = [str(binaries.find("kubectl")), "--kubeconfig", str(stage.cluster.kubeconfig)]
    codes: list[int] = []
    watching = threading.Event()
    with lines_of([*kubectl, "get", "pod", pod, "-n", home, "--watch", "-o", path]) as watch:

        def read() -> None:
            assert watch.stdout is not None
            for line in watch.stdout:
                watching.set()  # the first line is what the pod is now
                codes.extend([int(line)] if line.strip() else [])

        thread = threading.Thread(target=read)
        thread.start()
        assert watching.wait(20), "kubectl does not watch"
        yield codes
        watch.terminate()
        thread.join()


def test_namespace_deleted(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "doomed", **training(LONG)))
    wait_for_step(stage, home, "doomed", EVERY + 1)
    place = stage.status(home, "doomed")["prefix"].removeprefix(f"s3://{LORAS}/")
    assert stage.keys(place)
    stage.cluster.kubectl("delete", "namespace", home, "--timeout=120s", timeout=150)
    assert stage.keys(place) == [], "its Secret went first, and its storage is collected all the same"


def test_delete_and_recreate(stage: Stage, home: str) -> None:
    """By default only the artifact stays; a new run of the same name starts clean; DeleteAll leaves nothing.

    The first run makes all that one can leave behind, and finds out itself how many steps it takes.
    """
    everything = {
        "dataset": {"classPrompt": "photo of a dog", "classImages": 2, "keepClassImages": True},
        "training": {"steps": None, "epochs": 2},
        "checkpoint": {"everySteps": 2, "keepIntermediate": {"everySteps": 2}},
        "validation": {"prompts": ["photo of timberdog"], "everySteps": 2, "inferenceSteps": 2},
        "metrics": {"tensorBoard": True},
    }
    stage.cluster.apply(stage.run(home, "again", **everything))
    first = wait_for_phase(stage, home, "again", "Succeeded")
    assert first["stepOf"] == "4/4", "two epochs of four images, two in a step"
    assert first["attempts"][0]["generatingUntil"], "class images were made, and it was told"
    assert "checkpoint" not in first, "its folder is about to go"
    artifact = first["artifact"]["uri"].removeprefix(f"s3://{LORAS}/")
    stage.wait("only the product is left", lambda: stage.status(home, "again").get("pruned"), 30)
    left = {key for key in stage.keys(f"{home}/again-") if not key.startswith(artifact)}
    assert {key.rpartition("/")[2] for key in left} == {"head.json", "owner.json"}
    stage.cluster.kubectl("delete", "lft", "again", "-n", home, "--timeout=60s")
    kept = stage.keys(f"{home}/again-")
    assert kept
    assert all(key.startswith(artifact) for key in kept), kept
    published = {key.removeprefix(artifact).split("/")[0] for key in kept}
    assert {"step-000002.safetensors", "step-000004_kohya.safetensors", "samples", "tensorboard", "class"} <= published
    assert hashlib.sha256(lora_of(stage, first)).hexdigest() == first["artifact"]["sha256"]

    short = {"training": {"steps": 3}, "checkpoint": {"everySteps": 2}}
    run = stage.run(home, "again", **short)
    run["spec"]["storage"]["onDelete"] = "DeleteAll"
    stage.cluster.apply(run)
    second = wait_for_phase(stage, home, "again", "Succeeded")
    assert second["prefix"] != first["prefix"]
    assert [one["number"] for one in second["attempts"]] == [1]
    assert second["attempts"][0]["fromStep"] == 0, "nothing of the run before is resumed"
    stage.cluster.kubectl("delete", "lft", "again", "-n", home, "--timeout=60s")
    assert stage.keys(second["prefix"].removeprefix(f"s3://{LORAS}/")) == []
    assert stage.keys(f"{home}/again-") == kept, "what the first run was asked to keep is still kept"


def test_deleted_while_training(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "unwanted", **training(LONG)))
    wait_for_step(stage, home, "unwanted", 3)
    place = stage.status(home, "unwanted")["prefix"].removeprefix(f"s3://{LORAS}/")
    stage.cluster.kubectl("delete", "lft", "unwanted", "-n", home, "--timeout=60s")
    assert stage.keys(place) == []
    stage.wait("its pod is gone", lambda: not pods(stage, home), 30)


def test_suspended_and_resumed(stage: Stage, home: str) -> None:
    stage.cluster.apply(stage.run(home, "sleepy", **training(LONG)))
    wait_for_step(stage, home, "sleepy", 3)
    stage.cluster.kubectl("patch", "lft", "sleepy", "-n", home, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    status = stage.wait(
        "suspended",
        lambda: (now := stage.status(home, "sleepy")).get("message", "").startswith("suspended by") and now,
        60,
    )
    assert status["attempts"][0]["cause"] == "Suspended"
    saved = status["attempts"][0]["durableStep"]
    assert saved >= status["attempts"][0]["toStep"] - 1
    stage.cluster.kubectl("patch", "lft", "sleepy", "-n", home, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait_for_attempt(stage, home, "sleepy", 2)
    assert attempt_of(stage, home, "sleepy", 2)["fromStep"] == saved
    assert not stage.status(home, "sleepy")["preemptions"]
