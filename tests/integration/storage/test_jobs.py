"""Jobs of one run keep out of each other's way, on the real server."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import layout
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry, Head
from lorafinetune.contract.plan import Plan
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


PLAN = Plan(
    config_digest="0" * 64, dataset_digest="0" * 64, base_model_digest="0" * 64, steps=30, micro_batch=1,
    precision="fp32", gradient_checkpointing=False, device="cpu", threads=1,
)  # fmt: skip


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


@pytest.mark.parametrize(
    ("plan", "spec_steps", "wanted", "artifact", "ok", "steps"),
    [
        pytest.param(PLAN, None, None, 30, True, 30, id="as many as the plan says"),
        pytest.param(PLAN, None, None, 20, False, 30, id="fewer than the plan says"),
        pytest.param(PLAN, 40, None, 30, False, 40, id="fewer than the spec says by now"),
        pytest.param(PLAN, 20, None, 20, True, 20, id="the spec comes before the plan"),
        pytest.param(None, None, None, 20, True, 20, id="a head that was made anew has no plan"),
        pytest.param(PLAN, None, None, None, False, 30, id="none at all"),
        pytest.param(None, None, None, None, False, 0, id="none, and nobody knows"),
        pytest.param(PLAN, 30, 20, 20, True, 20, id="published at a limit"),
        pytest.param(PLAN, 30, 20, 25, True, 20, id="published at a limit, from a newer checkpoint than was known"),
        pytest.param(PLAN, 30, 20, 10, False, 20, id="an older one than the checkpoint that was to be published"),
        pytest.param(PLAN, 30, 20, None, False, 20, id="nothing was published"),
    ],
)
async def test_an_artifact_must_have_the_steps_of_spec_or_plan_or_those_that_were_asked_for(
    plan: Plan | None,
    spec_steps: int | None,
    wanted: int | None,
    artifact: int | None,
    ok: bool,
    steps: int,
    jobs: Jobs,
    s3: Access,
) -> None:
    bucket, run = place(s3), spec(s3.endpoint)
    if spec_steps is not None:
        run = run.model_copy(update={"training": run.training.model_copy(update={"steps": spec_steps})})
    entry = None
    if artifact is not None:
        said = {"kind": "artifact", "run_uid": RUN.uid, "attempt": 1, "step": artifact, "updates": artifact}
        sha256 = put_files(bucket, layout.artifact(1), {layout.LORA: b"x"}, **said)
        entry = ArtifactEntry(attempt=1, step=artifact, manifest_sha256=sha256)
    stored.change(bucket, lambda _: Head(run_uid=RUN.uid, attempt=1, pod_uid="p", plan=plan, artifact=entry))
    try:
        for job in (Job.READ, Job.VERIFY):
            jobs.start(job, RUN, run, attempt=1, steps=wanted)
        await until(lambda: jobs.seen(RUN.uid).artifact and jobs.seen(RUN.uid).read, "both have answers", 10)
        found = jobs.seen(RUN.uid)
        assert found.planned_steps == (plan.steps if plan else None)
        assert found.artifact is not None
        assert (found.artifact.ok, found.artifact.steps) == (ok, steps), found.artifact.message
        may_be_raised = spec_steps is not None and wanted is None
        assert found.artifact.step == (artifact if ok or may_be_raised else None)
        assert found.artifact.attempt == (1 if found.artifact.step is not None else None)
    finally:
        bucket.delete([one.key for one in bucket.walk()])


@pytest.mark.parametrize(("newest", "ok"), [(15, True), (20, False)])
async def test_where_the_newest_checkpoint_was_damaged_the_one_before_it_is_what_can_be_published(
    newest: int, ok: bool, jobs: Jobs, s3: Access
) -> None:
    bucket, run = place(s3), spec(s3.endpoint)
    said = {"kind": "artifact", "run_uid": RUN.uid, "attempt": 1, "step": 15, "updates": 15}
    sha256 = put_files(bucket, layout.artifact(1), {layout.LORA: b"x"}, **said)
    head = Head(
        run_uid=RUN.uid,
        attempt=1,
        checkpoints=[CheckpointEntry(attempt=1, step=newest, manifest_sha256="0" * 64)],
        artifact=ArtifactEntry(attempt=1, step=15, manifest_sha256=sha256),
    )
    stored.change(bucket, lambda _: head)
    try:
        jobs.start(Job.VERIFY, RUN, run, attempt=1, steps=20)
        await until(lambda: jobs.seen(RUN.uid).artifact, "it has an answer", 10)
        found = jobs.seen(RUN.uid).artifact
        assert found is not None
        assert (found.ok, found.steps, found.step) == (ok, 20, 15 if ok else None), found.message
    finally:
        bucket.delete([one.key for one in bucket.walk()])


async def test_a_class_set_without_images_is_found_before_a_gpu_is_paid_for(jobs: Jobs, s3: Access) -> None:
    run, base = spec(s3.endpoint), f"s3://{BUCKET}/sets/"
    s3.bucket(base).put("timber/a.png", b"")
    sources = {"source": f"{base}timber/", "class_source": f"{base}dogs/"}
    run = run.model_copy(update={"dataset": run.dataset.model_copy(update=sources)})
    jobs.start(Job.CHECK, RUN, run, attempt=0)
    await until(lambda: jobs.seen(RUN.uid).checked, "it has an answer", 20)
    checked = jobs.seen(RUN.uid).checked
    assert checked is not None
    assert (checked.ok, checked.reason) == (False, "EmptyDataset")
    assert "dataset.classSource" in checked.message
    s3.bucket(base).put("dogs/a.png", b"")
    jobs.start(Job.CHECK, RUN, run, attempt=0)
    await until(lambda: (seen := jobs.seen(RUN.uid).checked) and seen.ok, "it is good now", 20)
    checked = jobs.seen(RUN.uid).checked
    assert checked is not None
    assert "the data set holds 1 image, the class set holds 1 image" in checked.message
