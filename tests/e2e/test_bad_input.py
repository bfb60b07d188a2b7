"""Bad input ends in a condition and a message that says what to mend, never in a crash loop."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest

from examples.stage import DATA, MODELS, Stage
from examples.tiny_sdxl import build

Object = dict[str, Any]


class Bad(NamedTuple):
    """One mistake: the changes to a good run, the condition it ends in, and what its message must name."""

    changes: Object
    condition: str
    reason: str
    words: tuple[str, ...]
    attempts: int = 0


MISTAKES = {
    "missing-secret": Bad(
        {"storage": {"credentialsSecret": "nope"}}, "StorageReady", "CredentialsMissing", ("'nope'", "create it")
    ),
    "secret-without-label": Bad(
        {"storage": {"credentialsSecret": "unlabelled"}},
        "StorageReady",
        "CredentialsNotLabelled",
        ('lorafinetune.io/storage: "true"',),
    ),
    "secret-without-key": Bad(
        {"storage": {"credentialsSecret": "incomplete"}},
        "StorageReady",
        "CredentialsIncomplete",
        ("AWS_SECRET_ACCESS_KEY",),
    ),
    "no-secret-named": Bad(
        {"storage": {"credentialsSecret": None}}, "StorageReady", "CredentialsMissing", ("name a Secret",)
    ),
    "denied-bucket": Bad(
        {"storage": {"credentialsSecret": "wrong"}}, "StorageReady", "AccessDenied", ("check the Secret's keys",)
    ),
    "absent-bucket": Bad({"storage": {"uri": "s3://absent/"}}, "StorageReady", "BucketMissing", ("'absent'", "create")),
    "store-away": Bad(
        {"storage": {"endpoint": "http://127.0.0.1:9"}}, "StorageReady", "StorageUnreachable", ("127.0.0.1:9",)
    ),
    "empty-dataset": Bad(
        {"dataset": {"source": f"s3://{DATA}/nothing/"}}, "StorageReady", "EmptyDataset", ("dataset.source", "nothing")
    ),
    "no-image-dataset": Bad(
        {"dataset": {"source": f"s3://{DATA}/texts/"}}, "StorageReady", "EmptyDataset", ("1 object, but no image",)
    ),
    "unknown-pool": Bad({"placement": {"pools": ["nope"]}}, "Accepted", "UnknownPool", ("'nope'", "spot")),
    "no-node": Bad(
        {"placement": {"pools": ["nowhere"]}}, "Running", "Unschedulable", ("waits for a node",), attempts=1
    ),
}

FATAL = {
    "truncated-image": Bad(
        {"dataset": {"source": f"s3://{DATA}/torn/"}}, "Succeeded", "TruncatedImage", ("torn.jpg",), attempts=1
    ),
    "wrong-base-model": Bad(
        {"baseModel": {"source": f"s3://{MODELS}/no-model/"}}, "Succeeded", "WrongBaseModel", ("no-model",), attempts=1
    ),
    "nan-loss": Bad(
        {"baseModel": {"source": f"s3://{MODELS}/broken-sdxl/"}},
        "Succeeded",
        "NaNLoss",
        ("learningRate",),
        attempts=1,
    ),
}


@pytest.fixture(scope="module")
def spoiled(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The stage with bad data, bad models and a pool that no node is of."""
    client = stage.cluster.s3.client()
    good = stage.keys("timber/", DATA)[0]
    picture = client.get_object(Bucket=DATA, Key=good)["Body"].read()
    client.put_object(Bucket=DATA, Key="torn/fine.jpg", Body=picture)
    client.put_object(Bucket=DATA, Key="torn/torn.jpg", Body=picture[: len(picture) // 2])
    client.put_object(Bucket=DATA, Key="texts/readme.md", Body=b"no picture")
    client.put_object(Bucket=MODELS, Key="no-model/config.json", Body=b"{}")
    broken = build(tmp_path_factory.mktemp("models") / "broken-sdxl", broken=True)
    stage.put_folder(broken, MODELS, "broken-sdxl/")
    stage.add_pool("nowhere", price="0.1", default=False)
    return stage


def condition(status: Object, kind: str) -> Object:
    return next((one for one in status.get("conditions", ()) if one["type"] == kind), {})


def settled(stage: Stage, home: str, name: str, bad: Bad, seconds: float) -> Object:
    def says() -> Object | None:
        status = stage.status(home, name)
        found = condition(status, bad.condition)
        return status if found.get("status") == "False" and found.get("reason") == bad.reason else None

    return stage.wait(f"{name} says {bad.reason}", says, seconds)


def check(stage: Stage, home: str, name: str, bad: Bad, seconds: float) -> None:
    status = settled(stage, home, name, bad, seconds)
    said = condition(status, bad.condition)["message"]
    assert all(word in said for word in bad.words), said
    assert status["message"] == said, "the MESSAGE column says the same"
    assert len(status.get("attempts", ())) == bad.attempts, status["attempts"]


def test_mistakes_that_cost_no_gpu_wait_with_a_reason(spoiled: Stage, home: str) -> None:
    stage = spoiled
    stage.add_credentials(home, "incomplete", AWS_SECRET_ACCESS_KEY="")
    stage.add_credentials(home, "wrong", AWS_SECRET_ACCESS_KEY="not-the-secret-of-this-key")
    stage.add_credentials(home, "unlabelled")
    stage.cluster.kubectl("label", "secret", "unlabelled", "-n", home, "lorafinetune.io/storage-")
    stage.cluster.apply(*(stage.run(home, name, **bad.changes) for name, bad in MISTAKES.items()))
    for name, bad in MISTAKES.items():
        check(stage, home, name, bad, seconds=90)
    assert len(stage.cluster.get("pods", "-n", home)["items"]) == 1, "only the run without a node has a pod"
    warned = {one["reason"] for one in stage.cluster.get("events.events.k8s.io", "-n", home)["items"]}
    assert {bad.reason for bad in MISTAKES.values()} <= warned

    # What was wrong is mended from outside, and the run goes on by itself.
    stage.add_credentials(home, "nope")
    stage.wait("the Secret is found", lambda: stage.status(home, "missing-secret").get("attempt") == 1, 60)


def test_mistakes_that_only_the_trainer_can_see_end_the_run(spoiled: Stage, home: str) -> None:
    stage = spoiled
    stage.cluster.apply(*(stage.run(home, name, **bad.changes) for name, bad in FATAL.items()))
    for name, bad in FATAL.items():
        check(stage, home, name, bad, seconds=300)
        assert stage.status(home, name)["phase"] == "Failed"
    pods = stage.cluster.get("pods", "-n", home)["items"]
    assert len(pods) == len(FATAL), "nothing is tried twice that cannot work"
    assert {one["status"]["containerStatuses"][0]["restartCount"] for one in pods} == {0}


def refused_creates(stage: Stage) -> int:
    """How often the API server has said no to a new pod, by its own count."""
    counted = stage.cluster.kubectl("get", "--raw", "/metrics")
    wanted = [line for line in counted.splitlines() if line.startswith("apiserver_request_total{")]
    marks = ('code="403"', 'resource="pods"', 'verb="POST"', 'subresource=""')
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in wanted if all(mark in line for mark in marks))


def test_a_pod_that_is_refused_is_asked_for_now_and_then(stage: Stage, home: str) -> None:
    quota = {"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "none", "namespace": home}}
    stage.cluster.apply(quota | {"spec": {"hard": {"count/pods": "0"}}})
    stage.wait("the quota holds", lambda: stage.cluster.get("quota", "none", "-n", home)["status"].get("hard"), 30)
    before = refused_creates(stage)
    stage.cluster.apply(stage.run(home, "refused"))
    bad = Bad({}, "Running", "CreateRefused", ("exceeded quota", "count/pods=1"))
    check(stage, home, "refused", bad, seconds=60)
    time.sleep(3)  # a loop that does not wait makes hundreds in that time
    assert 1 <= refused_creates(stage) - before <= 2

    stage.cluster.kubectl("delete", "quota", "none", "-n", home)
    stage.wait("the pod is made", lambda: stage.status(home, "refused").get("attempt") == 1, 60)
