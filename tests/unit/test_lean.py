"""What keeps the operator small and quick: lean stores, Secrets and bucket checks asked for once, urgency of news."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from typing import Any

import pytest

from lorafinetune import pressing
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import Condition, LoRAFineTuneStatus
from lorafinetune.engine.decision import CreatePod
from lorafinetune.engine.observation import RunSeen
from lorafinetune.kube import pods, secrets, seen, status
from lorafinetune.kube.errors import Unavailable
from lorafinetune.kube.handlers import registry
from lorafinetune.kube.slim import slim, slim_pod
from lorafinetune.kube.store import Change, Store
from lorafinetune.storage.lately import Lately

Object = dict[str, Any]

RUN = RunSeen("n", "timber", "0123456789", 1, 0.0)
SPEC = LoRAFineTuneSpec.model_validate(
    {
        "baseModel": {"source": "s3://models/tiny/"},
        "dataset": {"source": "s3://data/timber/", "instancePrompt": "photo of " + "timberdog " * 150},
        "storage": {"uri": "s3://loras/", "credentialsSecret": "c"},
    }
)
POOL = GPUPoolSpec.model_validate(
    {"capacityType": "Spot", "nodeSelector": {"a": "b"}, "pricePerHour": "0.348", "gpu": {"product": "RTX-4090"}}
)


def pod(**status: Any) -> Object:
    body = pods.build(RUN, SPEC, CreatePod(1, "spot", POOL, None, "1.2"), pods.Trainer("t", "https://x:1", "CA"))
    body["metadata"] |= {
        "uid": "u",
        "resourceVersion": "5",
        "creationTimestamp": "2026-11-23T10:00:00Z",
        "managedFields": [{"manager": "m"}],
    }
    body["spec"] |= {"nodeName": "node-1", "affinity": {"nodeAffinity": {}}, "schedulingGates": [{"name": "g"}]}
    return json.loads(json.dumps(body | {"status": status}))


ENDED = {"name": "trainer", "state": {"terminated": {"exitCode": 143, "finishedAt": "2026-11-23T10:01:00Z"}}}


@pytest.mark.parametrize("given", [{}, {"phase": "Running"}, {"phase": "Failed", "containerStatuses": [ENDED]}])
def test_a_lean_pod_tells_all_that_the_whole_one_does(given: Object) -> None:
    whole = pod(**given)
    lean = slim_pod(copy.deepcopy(whole))
    assert seen.pod_seen(lean) == seen.pod_seen(whole)
    assert (seen.is_over(lean), seen.waits(lean), seen.pool_of(lean)) == (
        seen.is_over(whole),
        seen.waits(whole),
        seen.pool_of(whole),
    )
    assert "timberdog" not in json.dumps(lean)
    assert "managedFields" not in lean["metadata"]


def test_a_lean_object_says_the_same_and_shares_its_words() -> None:
    run = {"metadata": {"name": "a", "namespace": "n"}, "status": {"phase": "Running", "steps": [1, None, True, 0.5]}}
    one, other = (slim(json.loads(json.dumps(run))) for _ in range(2))
    assert one == run
    assert one["status"]["phase"] is other["status"]["phase"]
    assert next(iter(one["status"])) is next(iter(other["status"]))


def test_a_store_keeps_lean_objects_however_they_come() -> None:
    store = Store(lambda thing: [thing["metadata"]["uid"]], slim_pod)
    whole = pod()
    for number, put in enumerate(
        (
            lambda one: store.replace([one], "9"),
            lambda one: store.take("MODIFIED", one),
            store.learn,
        )
    ):
        newer = copy.deepcopy(whole)
        newer["metadata"]["resourceVersion"] = str(10 + number)
        put(newer)
        kept = store.get("timber-01234-1", "n")
        assert kept is not None
        assert kept["metadata"]["resourceVersion"] == str(10 + number)
        assert "containers" not in kept["spec"]
        assert store.indexed("u") == [kept]


def test_the_front_door_works_in_the_loop_and_in_no_thread() -> None:
    handlers = registry(Store(), lambda _change: None)._watching.get_all_handlers()
    assert [inspect.iscoroutinefunction(one.fn) for one in handlers] == [True]


class Api:
    """Counts what it is asked for, and answers when it is let."""

    def __init__(self, *answers: Object | Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def get(self, _resource: object, _name: str, _namespace: str) -> Object | None:
        self.asked += 1
        await self.open.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_wave_reads_its_secret_once_and_anew_after_seconds() -> None:
    api, now = Api({"data": 1}, {"data": 2}), 0.0
    known = secrets.Secrets(api, lambda: now)  # type: ignore[arg-type]
    api.open.clear()
    readers = [asyncio.create_task(known.read("n", "s")) for _ in range(20)]
    await asyncio.sleep(0)
    readers[0].cancel()  # one that gives up takes nothing from the others
    api.open.set()
    answers = await asyncio.gather(*readers, return_exceptions=True)
    assert answers[1:] == [{"data": 1}] * 19
    assert api.asked == 1
    now = secrets.TRUSTED_SECONDS
    assert await known.read("n", "s") == {"data": 2}


async def test_what_is_missing_or_could_not_be_read_is_asked_for_anew() -> None:
    api = Api(None, Unavailable("away"), {"data": 1})
    known = secrets.Secrets(api, lambda: 0.0)  # type: ignore[arg-type]
    assert await known.read("n", "s") is None
    with pytest.raises(Unavailable):
        await known.read("n", "s")
    assert await known.read("n", "s") == {"data": 1}


def test_only_good_news_of_a_bucket_is_kept_and_not_for_long() -> None:
    now, asked = 0.0, 0
    lately = Lately(30.0, lambda: now)

    def answer() -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ValueError("denied")
        return asked

    with pytest.raises(ValueError, match="denied"):
        lately.ask("q", answer)
    assert [lately.ask("q", answer) for _ in range(3)] == [2, 2, 2]
    assert lately.ask("another", lambda: 7) == 7
    now = 30.0
    assert lately.ask("q", answer) == 3


def thing(**metadata: Any) -> Object:
    return {"metadata": {"name": "a", "uid": "u", "generation": 1} | metadata}


def with_phase(phase: str, **metadata: Any) -> Object:
    return thing(**metadata) | {"status": {"phase": phase}}


@pytest.mark.parametrize(
    ("name", "old", "new", "urgent"),
    [
        ("it is new", None, thing(), True),
        ("it is gone", thing(), None, True),
        ("it is being deleted", thing(), thing(deletionTimestamp="t"), True),
        ("its spec is another", thing(), thing(generation=2), True),
        ("it was made again", thing(), thing(uid="v"), True),
        ("its status was written", thing(), thing(resourceVersion="2"), False),
    ],
)
def test_urgency_of_a_run(name: str, old: Object | None, new: Object | None, urgent: bool) -> None:
    assert pressing.of_run(Change(("n", "a"), old, new)) is urgent, name


@pytest.mark.parametrize(
    ("name", "old", "new", "urgent"),
    [
        ("it was made", None, with_phase("Pending"), False),
        ("it runs", with_phase("Pending"), with_phase("Running"), False),
        ("it failed", with_phase("Running"), with_phase("Failed"), True),
        ("it was found failed", None, with_phase("Failed"), True),
        ("it is being deleted", with_phase("Running"), with_phase("Running", deletionTimestamp="t"), True),
        ("it is gone", with_phase("Running"), None, True),
        ("our finalizer was taken off it", with_phase("Failed"), with_phase("Failed", finalizers=[]), False),
    ],
)
def test_urgency_of_a_pod(name: str, old: Object | None, new: Object | None, urgent: bool) -> None:
    assert pressing.of_pod(Change(("n", "a"), old, new)) is urgent, name


@pytest.mark.parametrize(
    ("name", "run", "phases", "lacks"),
    [
        ("all its pods have ended", {"spec": {}}, ["Failed", "Failed"], True),
        ("it is new", {"spec": {}}, [], True),
        ("one lives", {"spec": {}}, ["Failed", "Running"], False),
        ("it is suspended", {"spec": {"suspend": True}}, ["Failed"], False),
        ("it has ended", {"spec": {}, "status": {"completionTime": "t"}}, ["Succeeded"], False),
    ],
)
def test_what_an_operator_that_starts_looks_at_first(name: str, run: Object, phases: list[str], lacks: bool) -> None:
    assert pressing.lacks_pod(run, [with_phase(phase) for phase in phases]) is lacks, name


def test_what_was_taken_away_goes_before_what_begins_and_the_older_before_the_younger() -> None:
    def run(uid: str, created: str, **status: Any) -> Object:
        return {"metadata": {"uid": uid, "creationTimestamp": created}, "status": status}

    taken, old, young = run("c", "t9", attempt=2), run("b", "t1"), run("a", "t2", startTime="t")
    assert sorted([young, old, taken], key=pressing.order) == [taken, old, young]
    assert pressing.order(None) == pressing.order({"metadata": {"deletionTimestamp": "t"}}) == ""


def told(**changes: Any) -> LoRAFineTuneStatus:
    return LoRAFineTuneStatus.model_validate({"phase": "Pending", "step": 3} | changes)


def test_words_are_told_from_facts() -> None:
    said = Condition.model_validate(
        {
            "type": "Running",
            "status": "False",
            "reason": "R",
            "message": "m",
            "lastTransitionTime": "2026-11-23T10:00:00Z",
        }
    )
    assert status.only_words(told(), told(phase="Starting", message="asking the bucket", conditions=[said]))
    assert not status.only_words(told(), told(message="asking the bucket", step=4))
    assert not status.only_words(told(), told(startTime="2026-11-23T10:00:00Z"))
    first = told(step=0, failures=0, preemptions=0, progress="0%", stepOf="0/40", steps=40)
    assert status.only_words(LoRAFineTuneStatus(), first)
    assert not status.only_words(LoRAFineTuneStatus(), told(attempt=1))
    assert not status.only_words(LoRAFineTuneStatus(), told(startTime="2026-11-23T10:00:00Z"))
    assert not status.only_words(told(), told(failures=1))
    assert not status.differs(told(), told())
    assert status.differs(told(), told(step=4))
