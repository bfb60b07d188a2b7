"""Jobs of one run keep out of each other's way, on the real server."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import layout
from lorafinetune.engine.decision import Job
from lorafinetune.engine.observation import RunSeen
from lorafinetune.jobs import SECRET_LABEL, Jobs
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from tests.integration.patience import until
from tests.integration.storage.folders import put_files
from tests.integration.trainer.faults import Fault, Kind, Proxy
from tests.integration.trainer.s3 import BUCKET, Access
from tests.manifests import MINIMAL

RUN = RunSeen(namespace="team", name="timber", uid="uid-of-the-run", generation=1, created=0.0)


def spec(endpoint: str) -> LoRAFineTuneSpec:
    storage = {
        "uri": f"s3://{BUCKET}/jobs/",
        "endpoint": endpoint,
        "credentialsSecret": "keys",
        "onDelete": "DeleteAll",
    }
    return LoRAFineTuneSpec.model_validate(MINIMAL["spec"] | {"storage": storage})


def place(s3: Access) -> Bucket:
    """The run's prefix."""
    return s3.bucket(f"s3://{BUCKET}/{layout.run_prefix(f's3://{BUCKET}/jobs/', 'team', 'timber', RUN.uid).key}")


@pytest.fixture
def prefix(s3: Access) -> Bucket:
    """The run's prefix with one checkpoint, and no head: somebody has deleted it."""
    bucket = place(s3)
    stored.mark_owner(bucket, stored.Owner(run_uid=RUN.uid))
    said = {"kind": "checkpoint", "run_uid": RUN.uid, "attempt": 1, "step": 1, "updates": 1}
    put_files(bucket, "checkpoints/1-1/", {"state": b"x"}, **said)
    return bucket


def collected(jobs: Jobs, run: LoRAFineTuneSpec) -> Any:
    """Ask for the collection again and again, as the loop does, for it may have to wait for another job."""
    jobs.start(Job.COLLECT, RUN, run, attempt=0)
    return jobs.seen(RUN.uid).collected


@pytest.fixture
async def jobs(s3: Access) -> AsyncIterator[Jobs]:
    """Jobs with the run's keys."""

    async def secret(_namespace: str, _name: str) -> dict[str, Any]:
        keys = {"AWS_ACCESS_KEY_ID": s3.key_id, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
        return {"metadata": {"labels": {SECRET_LABEL: "true"}}, "data": data}

    made = Jobs(read_secret=secret, wake=lambda _uid: None, clock=time.time)
    yield made
    await made.close()


@pytest.mark.parametrize("earlier", [Job.PRUNE, Job.REBUILD])
async def test_a_collection_waits_for_what_may_make_a_head(
    earlier: Job, jobs: Jobs, prefix: Bucket, between: Proxy
) -> None:
    run = spec(between.endpoint)
    between.faults = [Fault(Kind.HOLD, suffix=layout.HEAD)]
    jobs.start(earlier, RUN, run, attempt=1)
    await until(lambda: Kind.HOLD in between.happened, "the head is about to be made anew", 10)

    jobs.start(Job.COLLECT, RUN, run, attempt=1)
    with pytest.raises(AssertionError, match="not within"):
        await until(lambda: jobs.seen(RUN.uid).collected, "the collection overtakes", 1)
    between.let_go.set()
    await until(lambda: jobs.seen(RUN.uid).pruned or jobs.seen(RUN.uid).rebuilt, "the first job has ended", 10)
    assert [one.key for one in prefix.walk()], "nothing is collected behind the back of another job"

    jobs.start(Job.COLLECT, RUN, run, attempt=1)
    await until(lambda: jobs.seen(RUN.uid).collected, "it is collected now", 10)
    assert [one.key for one in prefix.walk()] == []


@pytest.mark.parametrize(("earlier", "key"), [(Job.MARK, layout.OWNER), (Job.CHECK, ".lorafinetune-probe-")])
async def test_a_collection_waits_for_what_comes_before_the_first_attempt(
    earlier: Job, key: str, jobs: Jobs, s3: Access, between: Proxy
) -> None:
    run = spec(between.endpoint)
    between.faults = [Fault(Kind.HOLD, contains=key)]
    jobs.start(earlier, RUN, run, attempt=0)
    await until(lambda: Kind.HOLD in between.happened, "something is about to be written", 10)
    with pytest.raises(AssertionError, match="not within"):
        await until(lambda: collected(jobs, run), "the collection overtakes", 1)
    between.let_go.set()
    await until(lambda: collected(jobs, run), "it is collected now", 20)
    assert [one.key for one in place(s3).walk()] == []


async def test_the_mark_is_put_once_and_collected(jobs: Jobs, s3: Access) -> None:
    run, bucket = spec(s3.endpoint), place(s3)
    for _ in range(2):
        jobs.start(Job.MARK, RUN, run, attempt=0)
        await until(lambda: (seen := jobs.seen(RUN.uid).marked) and seen.done, "it is marked", 10)
    assert [one.key for one in bucket.walk()] == [layout.OWNER]
    await until(lambda: collected(jobs, run), "it is collected", 10)
    assert [one.key for one in bucket.walk()] == []


@pytest.mark.parametrize("left", [[], ["conditioning/abc"]])
async def test_a_living_run_without_mark_and_head_goes_on(
    left: list[str], jobs: Jobs, s3: Access, prefix: Bucket
) -> None:
    prefix.delete([one.key for one in prefix.walk()])
    for key in left:
        prefix.put(key, b"put by an attempt that has not noticed yet")
    jobs.start(Job.REBUILD, RUN, spec(s3.endpoint), attempt=3)
    await until(lambda: jobs.seen(RUN.uid).rebuilt, "it has an answer", 10)
    rebuilt = jobs.seen(RUN.uid).rebuilt
    assert rebuilt is not None
    assert rebuilt.done, rebuilt
    assert [one.key for one in prefix.walk()] == [*left, layout.HEAD, layout.OWNER]
    prefix.delete([one.key for one in prefix.walk()])


async def test_a_prefix_that_was_emptied_after_success_stays_so(jobs: Jobs, s3: Access, prefix: Bucket) -> None:
    prefix.delete([one.key for one in prefix.walk()])
    jobs.start(Job.PRUNE, RUN, spec(s3.endpoint), attempt=3)
    await until(lambda: jobs.seen(RUN.uid).pruned, "it has an answer", 10)
    assert [one.key for one in prefix.walk()] == []
