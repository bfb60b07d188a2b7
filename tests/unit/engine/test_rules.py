"""Every rule of the product: what is seen, and what is decided. Read it beside ``engine/rules.py``."""

# ruff: noqa: E501 - a table is read by its rows

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.api.status import ArtifactStatus, CheckpointStatus, Condition, ConditionStatus, Totals
from lorafinetune.contract.event import Phase, Saved, Termination
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry
from lorafinetune.engine.conditions import ConditionType, find
from lorafinetune.engine.decision import (
    Abandon,
    AddFinalizer,
    CreatePod,
    DeletePod,
    Job,
    ReadEvents,
    ReleasePod,
    RemoveFinalizer,
    StartJob,
)
from lorafinetune.engine.observation import (
    ArtifactChecked,
    NodeSeen,
    Observation,
    Refusal,
    StorageChecked,
    StorageSeen,
    Tidied,
)
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, READY, attempt, ended, pod, pool, seen, spec, status

LOST = NodeSeen("node-a", ready=False, not_ready_since=NOW - 60)
CLOSED = {"cause": "Preempted", "reason": "X", "ended": stamp(NOW - 60), "message": "node-a was taken back"}
ARTIFACT = ArtifactStatus(uri="s3://loras/a/", file="pytorch_lora_weights.safetensors", sha256="0" * 64, size=1)
FEWER = ArtifactChecked(False, True, "ArtifactMissing", "of step 500 only", NOW, 600, step=500, attempt=1)
VERIFIED = ArtifactChecked(True, True, "Verified", "", NOW, 500, ARTIFACT)
KNOWN = CheckpointStatus(attempt=1, step=300, uri="s3://loras/x/checkpoints/1-300/", manifest_sha256="0" * 64)
KNOWN_ENTRY = CheckpointEntry(attempt=1, step=310, manifest_sha256="1" * 64)
DELETING: dict[str, Any] = {"deleting_since": NOW - 10}

ANY = spec(training={})
"""A run that leaves its number of steps to the trainer."""


def condition(kind: ConditionType, value: ConditionStatus) -> Condition:
    return Condition(type=kind, status=value, reason="X", message="", last_transition_time=stamp(NOW - 50))


SUCCEEDED = condition(ConditionType.SUCCEEDED, ConditionStatus.TRUE)
RUNNING = condition(ConditionType.RUNNING, ConditionStatus.TRUE)
FAILED = condition(ConditionType.SUCCEEDED, ConditionStatus.FALSE)
TRAINING = Progress(1, sequence=9, step=310, phase=Phase.TRAINING, seconds_per_step=1.6, loss=0.083, heard=NOW - 1)


HELD = condition(ConditionType.ACCEPTED, ConditionStatus.TRUE)


def storage(**known: Any) -> StorageSeen:
    return replace(READY, **known)


ROWS: list[tuple[str, Observation, str, str, list[Any]]] = [
    # name, observation, phase, reason, actions (by type, or the action itself)
    ("a new run is held first", seen(run={"has_finalizer": False}), "Pending", "Held", [AddFinalizer]),
    ("its bucket is asked", seen(storage=StorageSeen()), "Pending", "CheckingStorage", [StartJob(Job.CHECK)]),
    ("a bucket that says no is a wait", seen(storage=StorageSeen(checked=StorageChecked(False, "BucketMissing", "create it", NOW - 5))), "Pending", "BucketMissing", []),
    ("and is asked again", seen(storage=StorageSeen(checked=StorageChecked(False, "BucketMissing", "create it", NOW - 20))), "Pending", "BucketMissing", [StartJob(Job.CHECK)]),
    ("an unknown pool is a wait", seen(spec=spec(placement={"pools": ["nope"]})), "Pending", "UnknownPool", []),
    ("the spec is frozen before the first pod is made", seen(status=status(start_time=None)), "Starting", "Starting", []),
    ("the owner mark is put before the first pod is made", seen(storage=storage(marked=None)), "Starting", "MarkingStorage", [StartJob(Job.MARK)]),
    ("a mark that could not be put is a wait", seen(storage=storage(marked=Tidied(False, "StorageUnreachable", "away", NOW - 5))), "Pending", "StorageUnreachable", []),
    ("and is put again", seen(storage=storage(marked=Tidied(False, "StorageUnreachable", "away", NOW - 16))), "Pending", "StorageUnreachable", [StartJob(Job.MARK)]),
    ("later attempts find the mark", seen(status=status(attempt(**CLOSED)), storage=storage(marked=None)), "Starting", "AttemptCreated", [CreatePod]),
    ("all is well: the first attempt", seen(), "Starting", "AttemptCreated", [CreatePod]),
    ("a refused pod is a wait", seen(refusal=Refusal("CreateRefused", "exceeded quota", NOW - 1)), "Pending", "CreateRefused", []),
    ("and is tried again", seen(refusal=Refusal("CreateRefused", "exceeded quota", NOW - 16)), "Starting", "AttemptCreated", [CreatePod]),
    ("a pod that starts", seen(status=status(attempt()), pods=(pod(phase="Pending", node=None),)), "Starting", "PodStarting", []),
    ("no node fits", seen(status=status(attempt()), pods=(pod(phase="Pending", node=None, unschedulable="0/3 nodes are available"),)), "Starting", "Unschedulable", []),
    ("an image that is not there", seen(status=status(attempt()), pods=(pod(phase="Pending", waiting_reason="ImagePullBackOff"),)), "Starting", "ImagePullBackOff", []),
    ("a secret that is not there", seen(status=status(attempt()), pods=(pod(phase="Pending", waiting_reason="CreateContainerConfigError", waiting_message="secret not found"),)), "Starting", "CreateContainerConfigError", []),
    ("a trainer that has not spoken", seen(status=status(attempt()), pods=(pod(started=NOW - 10),)), "Starting", "TrainerStarting", []),
    ("a trainer that was not heard: the head is read", seen(status=status(attempt()), pods=(pod(started=NOW - 61),)), "Starting", "TrainerStarting", [StartJob(Job.READ)]),
    ("training", seen(status=status(attempt()), pods=(pod(),), progress=TRAINING), "Running", "Training", []),
    ("after the operator's restart a run still trains", seen(status=status(attempt(to_step=310), conditions=[RUNNING]), pods=(pod(started=NOW - 900),)), "Running", "Training", [StartJob(Job.READ)]),
    ("and its bucket is spoken to while there are credentials", seen(status=status(attempt(), conditions=[RUNNING]), pods=(pod(started=NOW),), progress=TRAINING, storage=StorageSeen()), "Running", "Training", [StartJob(Job.READ)]),
    ("a rested run's too", seen(status=status(attempt(cause="Finished"), conditions=[SUCCEEDED], pruned=True), storage=StorageSeen()), "Succeeded", "Succeeded", [StartJob(Job.READ)]),
    ("conditioning", seen(status=status(attempt()), pods=(pod(),), progress=Progress(1, phase=Phase.CONDITIONING, heard=NOW)), "Starting", "Conditioning", []),
    ("class images are made", seen(status=status(attempt()), pods=(pod(),), progress=Progress(1, phase=Phase.GENERATING, heard=NOW)), "Starting", "Generating", []),
    ("pictures are made in the middle of the training", seen(status=status(attempt()), pods=(pod(),), progress=replace(TRAINING, phase=Phase.VALIDATING)), "Running", "Validating", []),
    ("the last checkpoint is saved", seen(status=status(attempt()), pods=(pod(),), progress=replace(TRAINING, phase=Phase.SAVING)), "Running", "Saving", []),
    ("the steps of the data set are verified by what the plan said", seen(spec=ANY, status=status(attempt(), steps=300), pods=(ended(exit_code=0),), storage=storage(artifact=VERIFIED)), "Succeeded", "ArtifactVerified", []),
    ("to a pod that still pulls its image, too", seen(status=status(attempt(started=None)), pods=(pod(phase="Pending", started=None),), nodes={"node-a": NodeSeen("node-a", ready=True, notice="karpenter.sh/disrupted")}), "Starting", "Interrupted", [DeletePod]),
    ("once", seen(status=status(attempt(started=None)), pods=(pod(phase="Pending", started=None, deleting=True),), nodes={"node-a": NodeSeen("node-a", ready=True, notice="karpenter.sh/disrupted")}), "Starting", "Interrupted", []),
    ("which then was taken, not deleted by anybody", seen(status=status(attempt(started=None)), pods=(ended(exit_code=None, started=None, deleting=True),), nodes={"node-a": NodeSeen("node-a", ready=True, notice="karpenter.sh/disrupted")}), "Starting", "AttemptCreated", [CreatePod]),
    ("a notice on the node is passed on", seen(status=status(attempt()), pods=(pod(),), progress=TRAINING, nodes={"node-a": NodeSeen("node-a", ready=True, notice="karpenter.sh/disrupted")}), "Running", "Interrupted", [DeletePod]),
    ("a pod that is being deleted saves", seen(status=status(attempt()), pods=(pod(deleting=True),), progress=TRAINING), "Running", "Interrupted", []),
    ("a silent node is not given up at once", seen(status=status(attempt()), pods=(pod(),), nodes={"node-a": NodeSeen("node-a", ready=False, not_ready_since=NOW - 5)}), "Running", "NodeSilent", []),
    ("a lost node's run goes on elsewhere", seen(status=status(attempt()), pods=(pod(),), nodes={"node-a": LOST}), "Starting", "AttemptCreated", [CreatePod]),
    ("a lost node that is back ends its pod first", seen(status=status(attempt(cause="Suspended", ended=stamp(NOW - 100))), pods=(pod(deleting=True, deleting_since=NOW - 89),)), "Pending", "NodeBack", [ReleasePod]),
    ("for as long as that can take", seen(status=status(attempt(cause="Suspended", ended=stamp(NOW - 100))), pods=(pod(deleting=True, deleting_since=NOW - 90),)), "Starting", "AttemptCreated", [CreatePod, ReleasePod]),
    ("another machine of its name is not waited for", seen(status=status(attempt(cause="Suspended", machine="old/1", ended=stamp(NOW - 100))), pods=(pod(deleting=True, deleting_since=NOW - 9),), nodes={"node-a": NodeSeen("node-a", ready=True, uid="new", boot_id="2")}), "Starting", "AttemptCreated", [CreatePod, ReleasePod]),
    ("a storage that is cleared waits for it too", seen(run={"deleting_since": NOW - 9}, status=status(attempt(cause="NodeLost", ended=stamp(NOW - 200))), pods=(pod(deleting=True, deleting_since=NOW - 9, has_finalizer=False),)), "Deleting", "Stopping", [StartJob(Job.BURY)]),
    ("preempted: the next attempt at once", seen(status=status(attempt()), pods=(ended(disruption="EvictionByEvictionAPI"),)), "Starting", "AttemptCreated", [CreatePod]),
    ("killed without a word: wait for the reason", seen(status=status(attempt()), pods=(ended(ended=NOW - 3),)), "Pending", "EndingUnclear", []),
    ("an end that is stored lets the pod go", seen(status=status(attempt(**CLOSED), attempt(2)), pods=(ended(), pod(2)), progress=None), "Starting", "TrainerStarting", [StartJob, ReleasePod]),
    ("a zombie is let go, not forced", seen(status=status(attempt(**CLOSED), attempt(2)), pods=(pod(), pod(2, started=NOW)), progress=None), "Starting", "TrainerStarting", [ReleasePod("timber-0b1c2-1", "pod-1")]),
    ("and asked to end", seen(status=status(attempt(**CLOSED), attempt(2)), pods=(pod(has_finalizer=False), pod(2, started=NOW)), progress=None), "Starting", "TrainerStarting", [DeletePod("timber-0b1c2-1", "pod-1")]),
    ("a pod without an entry is adopted", seen(pods=(pod(started=NOW),)), "Starting", "TrainerStarting", []),
    ("exit 0 is verified", seen(status=status(attempt()), pods=(ended(exit_code=0),)), "Running", "Verifying", [StartJob(Job.VERIFY)]),
    ("verified is succeeded; nothing is deleted before that is stored", seen(status=status(attempt()), pods=(ended(exit_code=0),), storage=storage(artifact=VERIFIED)), "Succeeded", "ArtifactVerified", []),
    ("steps that were raised meanwhile are not there yet", seen(spec=spec(training={"steps": 501}), status=status(attempt()), pods=(ended(exit_code=0),), storage=storage(artifact=VERIFIED)), "Running", "Verifying", [StartJob(Job.VERIFY)]),
    ("a bucket away is asked again", seen(status=status(attempt()), pods=(ended(exit_code=0),), storage=storage(artifact=ArtifactChecked(False, False, "StorageUnreachable", "away", NOW - 16, 500))), "Running", "Verifying", [StartJob(Job.VERIFY)]),
    ("steps that were raised too late are the next attempt's", seen(spec=spec(training={"steps": 600}), status=status(attempt()), pods=(ended(exit_code=0),), storage=storage(artifact=FEWER)), "Starting", "AttemptCreated", [CreatePod]),
    ("and after a restart too", seen(spec=spec(training={"steps": 600}), status=status(attempt(cause="Finished", ended=stamp(NOW - 1))), storage=storage(artifact=FEWER)), "Starting", "AttemptCreated", [CreatePod]),
    ("but not past a limit", seen(spec=spec(training={"steps": 600}, limits={"maxDuration": "1s"}), status=status(attempt(cause="Finished", started=stamp(NOW - 100), ended=stamp(NOW - 1)), start_time=stamp(NOW - 100)), storage=storage(artifact=FEWER)), "Pending", "MaxDurationReached", []),
    ("an older attempt's artifact is none of this one's", seen(status=status(attempt(cause="Finished", ended=stamp(NOW - 1))), storage=storage(artifact=replace(FEWER, attempt=0))), "Pending", "ArtifactMissing", []),
    ("nor is one of no more steps than it began with", seen(status=status(attempt(cause="Finished", from_step=500, ended=stamp(NOW - 1))), storage=storage(artifact=FEWER)), "Pending", "ArtifactMissing", []),
    ("exit 0 without an artifact proves nothing", seen(status=status(attempt(cause="Finished", ended=stamp(NOW - 1))), pods=(ended(exit_code=0),), storage=storage(artifact=ArtifactChecked(False, True, "ArtifactMissing", "none", NOW, 500))), "Pending", "ArtifactMissing", [ReleasePod]),
    ("a user's error ends the run", seen(status=status(attempt()), pods=(ended(exit_code=78, termination=Termination(exit_code=78, reason="EmptyDataset", message="put images there")),)), "Failed", "EmptyDataset", []),
    ("out of memory once: tried again, for another process may have held some", seen(status=status(attempt()), pods=(ended(container_reason="OOMKilled"),)), "Pending", "BackingOff", []),
    ("twice ends the run with advice", seen(status=status(attempt(cause="OutOfMemory", ended=stamp(NOW - 90)), attempt(2)), pods=(ended(2, container_reason="OOMKilled"),)), "Failed", "OutOfMemory", []),
    ("NaN comes again: no second try", seen(status=status(attempt()), pods=(ended(exit_code=1, termination=Termination(exit_code=1, reason="NaNLoss", message="lower it")),)), "Failed", "NaNLoss", []),
    ("a crash without a word: wait for the reason", seen(status=status(attempt()), pods=(ended(exit_code=1, ended=NOW - 1),)), "Pending", "EndingUnclear", []),
    ("a first crash is tried again, soon", seen(status=status(attempt()), pods=(ended(exit_code=1, ended=NOW - 1, termination=Termination(exit_code=1, reason="TrainerError")),)), "Pending", "BackingOff", []),
    ("a second crash ends the run", seen(status=status(attempt(cause="Error", ended=stamp(NOW - 90)), attempt(2), failures=1), pods=(ended(2, exit_code=1, ended=NOW - 31),)), "Failed", "TrainerFailed", []),
    ("infrastructure backs off", seen(status=status(attempt(started=None)), pods=(ended(exit_code=None, started=None, ended=NOW - 1, pod_reason="NodeAffinity"),)), "Pending", "BackingOff", []),
    ("a bucket that failed an attempt is asked before the next", seen(status=status(attempt()), pods=(ended(exit_code=74),)), "Pending", "CheckingStorage", [StartJob(Job.CHECK)]),
    ("keys that expired are a wait, no end", seen(status=status(attempt()), pods=(ended(exit_code=77, ended=NOW - 60, termination=Termination(exit_code=77, reason="AccessDenied", message="no")),), storage=StorageSeen(checked=StorageChecked(False, "AccessDenied", "check the keys", NOW - 5))), "Pending", "AccessDenied", []),
    ("fenced once: the next attempt at once", seen(status=status(attempt(cause="Fenced", reason="Fenced", ended=stamp(NOW - 1)))), "Starting", "AttemptCreated", [CreatePod]),
    ("fenced again: something holds the head", seen(status=status(attempt(cause="Fenced", ended=stamp(NOW - 9)), attempt(2, cause="Fenced", reason="Fenced", ended=stamp(NOW - 1)))), "Pending", "BackingOff", []),
    ("a node's clock that is ahead delays nothing", seen(status=status(attempt()), pods=(ended(exit_code=75, deleting=True, started=NOW + 3000, ended=NOW + 3600),)), "Starting", "AttemptCreated", [CreatePod]),
    ("nor does it hide that the bucket was asked", seen(status=status(attempt()), pods=(ended(exit_code=74, ended=NOW + 3600),), storage=StorageSeen(checked=StorageChecked(False, "AccessDenied", "check the keys", NOW))), "Pending", "AccessDenied", []),
    ("a bare 137 by a clock that is far ahead is not waited for", seen(status=status(attempt()), pods=(ended(started=NOW + 3000, ended=NOW + 3600),)), "Starting", "AttemptCreated", [CreatePod]),
    ("a lost head is made anew", seen(status=status(attempt()), pods=(ended(exit_code=76, termination=Termination(exit_code=76, reason="HeadLost", message="head.json is gone")),)), "Pending", "HeadLost", [StartJob(Job.REBUILD)]),
    ("and then the run goes on", seen(status=status(attempt(cause="Fenced", reason="HeadLost", ended=stamp(NOW - 9))), storage=storage(rebuilt=Tidied(True, "HeadRebuilt", "step 50", NOW - 5))), "Starting", "AttemptCreated", [CreatePod]),
    ("a head that cannot be made anew is a wait", seen(status=status(attempt(cause="Fenced", reason="HeadLost", ended=stamp(NOW - 9))), storage=storage(rebuilt=Tidied(False, "NotVerified", "no owner mark", NOW - 5))), "Pending", "NotVerified", []),
    ("a succeeded run is pruned until it is", seen(status=status(attempt(cause="Finished"), conditions=[SUCCEEDED], phase="Succeeded")), "Succeeded", "Succeeded", [StartJob(Job.PRUNE)]),
    ("and rests", seen(status=status(attempt(cause="Finished"), conditions=[SUCCEEDED]), storage=storage(pruned=Tidied(True, "", "", NOW))), "Succeeded", "Succeeded", []),
    ("also after the operator's restart", seen(status=status(attempt(cause="Finished"), conditions=[SUCCEEDED], pruned=True)), "Succeeded", "Succeeded", []),
    ("a trainer that never speaks is told of", seen(status=status(attempt()), pods=(pod(started=NOW - 301),), storage=storage(read=NOW)), "Running", "Unheard", []),
    ("a failed run rests", seen(status=status(attempt(cause="Invalid", ended=stamp(NOW)), conditions=[FAILED])), "Failed", "Failed", []),
    ("suspend is written down first", seen(spec=spec(suspend=True), status=status(attempt()), pods=(pod(),)), "Suspended", "Suspending", []),
    ("then it stops the attempt", seen(spec=spec(suspend=True), status=status(attempt(stopping="Suspended")), pods=(pod(),)), "Suspended", "Suspending", [DeletePod]),
    ("resumed at once, the attempt ends all the same", seen(status=status(attempt(stopping="Suspended")), pods=(pod(),)), "Running", "Moving", [DeletePod]),
    ("a gated pod waits in its queue", seen(status=status(attempt()), pods=(pod(phase="Pending", node=None, started=None, gated=True, queue="team"),)), "Starting", "Queued", []),
    ("evicted by Kueue: the next attempt at once", seen(status=status(attempt()), pods=(ended(exit_code=75, deleting=True, queue_word="Preempted to accommodate a workload"),)), "Starting", "AttemptCreated", [CreatePod]),
    ("a suspended run stays stopped", seen(spec=spec(suspend=True), status=status(attempt(**CLOSED))), "Suspended", "Suspended", []),
    ("a suspended run never starts", seen(spec=spec(suspend=True)), "Suspended", "Suspended", []),
    ("deleted before it started", seen(run=DELETING, status=status(start_time=None, conditions=[HELD])), "Deleting", "Released", [RemoveFinalizer]),
    ("deleted in the second in which it was taken in", seen(run=DELETING | {"created": NOW - 2}, status=status(start_time=None)), "Deleting", "Released", [RemoveFinalizer]),
    ("deleted after its status was wiped", seen(run=DELETING, status=status(start_time=None)), "Deleting", "Collecting", [StartJob(Job.COLLECT)]),
    ("the same, when all is collected", seen(run=DELETING, status=status(start_time=None), storage=storage(collected=Tidied(True, "Collected", "nothing is left", NOW))), "Deleting", "Collected", [RemoveFinalizer]),
    ("deleted when only the mark may be there", seen(run=DELETING), "Deleting", "Collecting", [StartJob(Job.COLLECT)]),
    ("deleted while training: bury and stop", seen(run=DELETING, status=status(attempt()), pods=(pod(),)), "Deleting", "Stopping", [DeletePod, StartJob(Job.BURY)]),
    ("buried, the container still ends", seen(run=DELETING, status=status(attempt()), pods=(pod(deleting=True),), storage=storage(buried=Tidied(True, "", "", NOW))), "Deleting", "Stopping", []),
    ("ended: collect, and let the pod go", seen(run=DELETING, status=status(attempt()), pods=(ended(exit_code=75, deleting=True),)), "Deleting", "Collecting", [ReleasePod, StartJob(Job.COLLECT)]),
    ("collected: let the run go", seen(run=DELETING, status=status(attempt(**CLOSED)), storage=storage(collected=Tidied(True, "", "12 objects deleted", NOW))), "Deleting", "Collected", [RemoveFinalizer]),
    ("what may not be deleted is listed as left behind", seen(run=DELETING, status=status(attempt(**CLOSED)), storage=storage(collected=Tidied(True, "NotOurs", "no mark", NOW))), "Deleting", "Collected", [Abandon, RemoveFinalizer]),
    ("a lost attempt may still write", seen(run=DELETING, status=status(attempt(**CLOSED)), pods=(pod(deleting=True, has_finalizer=False),), storage=storage(buried=Tidied(True, "", "", NOW)), nodes={"node-a": LOST}), "Deleting", "Stopping", []),
    ("nor one that only the totals remember", seen(run=DELETING, status=status(attempt(30, **CLOSED), totals=Totals(attempts=10)), pods=(pod(3, deleting=True, has_finalizer=False),), storage=storage(buried=Tidied(True, "", "", NOW)), nodes={"node-a": LOST}), "Deleting", "Collecting", [StartJob(Job.COLLECT)]),
    ("but not for ever", seen(run=DELETING, status=status(attempt(**(CLOSED | {"ended": stamp(NOW - 121)}))), pods=(pod(deleting=True, has_finalizer=False),), storage=storage(buried=Tidied(True, "", "", NOW)), nodes={"node-a": LOST}), "Deleting", "Collecting", [StartJob(Job.COLLECT)]),
    ("a bucket away is tried again", seen(run=DELETING, status=status(attempt(**CLOSED)), storage=storage(collected=Tidied(False, "StorageUnreachable", "away", NOW - 16))), "Deleting", "CollectRetry", [StartJob(Job.COLLECT)]),
    ("with writers left only the head is buried again", seen(run=DELETING, status=status(attempt()), pods=(pod(deleting=True),), storage=storage(buried=Tidied(False, "StorageUnreachable", "away", NOW - 16))), "Deleting", "CollectRetry", [StartJob(Job.BURY)]),
    ("and let go in the end", seen(run={"deleting_since": NOW - 901}, status=status(attempt(**CLOSED)), storage=storage(collected=Tidied(False, "StorageUnreachable", "away", NOW - 16))), "Deleting", "Abandoned", [Abandon, RemoveFinalizer]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "phase", "reason", "actions"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_rule(given, phase, reason, actions):
    decision = decide(given)
    assert (decision.status.phase, decision.reason) == (phase, reason), decision.message
    done = [action for action in decision.actions if not isinstance(action, ReadEvents)]  # see test_looks.py
    assert len(done) == len(actions), done
    for action, wanted in zip(done, actions, strict=True):
        assert isinstance(action, wanted) if isinstance(wanted, type) else action == wanted


def test_training_tells_all_that_a_user_asks():
    given = seen(
        status=status(attempt()),
        pods=(pod(),),
        progress=TRAINING,
        pools={"spot": pool(), "sure": pool("1.0", capacity="OnDemand", default=False)},
    )
    told = decide(given).status
    assert told.progress == "62%"
    assert told.step_of == "310/500"
    assert told.loss == "0.0830"
    assert told.eta == "5m9s"
    assert told.cost == "$0.009"
    assert told.message == "attempt 1 on node-a (spot): step 310 of 500, 1.6 s/step"
    running = find(told.conditions, ConditionType.RUNNING)
    assert running is not None
    assert running.status is ConditionStatus.TRUE
    assert {one.type for one in told.conditions} == {kind.value for kind in ConditionType}


ELSEWHERE = KNOWN_ENTRY.model_copy(update={"attempt": 2, "step": 320, "deviation": "attempt 2: A became B"})
BACK = KNOWN_ENTRY.model_copy(update={"attempt": 3, "step": 310})


@pytest.mark.parametrize(
    ("told", "read", "value", "reason"),
    [
        (None, None, ConditionStatus.UNKNOWN, "NothingSaved"),
        (KNOWN_ENTRY, None, ConditionStatus.TRUE, "AsPlanned"),
        (None, KNOWN_ENTRY, ConditionStatus.TRUE, "AsPlanned"),
        (ELSEWHERE, KNOWN_ENTRY, ConditionStatus.FALSE, "Deviated"),
        (KNOWN_ENTRY, ELSEWHERE, ConditionStatus.FALSE, "Deviated"),
        (BACK, ELSEWHERE, ConditionStatus.TRUE, "AsPlanned"),  # an older checkpoint was fallen back to
    ],
)
def test_whether_all_was_computed_as_planned(told: Any, read: Any, value: ConditionStatus, reason: str) -> None:
    given = seen(
        status=status(attempt()),
        pods=(pod(),),
        progress=replace(TRAINING, checkpoint=told),
        storage=storage(newest=read),
    )
    after = decide(given).status
    found = find(after.conditions, ConditionType.EXACT)
    assert found is not None
    assert (found.status, found.reason) == (value, reason)
    assert ("A became B" in found.message) is (value is ConditionStatus.FALSE)
    # An operator that has been restarted and has heard nothing yet leaves it as it is.
    kept = decide(seen(status=after, pods=(pod(),), storage=storage(newest=None))).status
    assert find(kept.conditions, ConditionType.EXACT) == found


def test_the_artifact_counts_more_than_any_checkpoint() -> None:
    made = ArtifactEntry(attempt=3, step=500, manifest_sha256="0" * 64, deviation="attempt 2: A became B")
    given = seen(
        status=status(attempt()), pods=(pod(),), progress=replace(TRAINING, artifact=made), storage=storage(newest=BACK)
    )
    found = find(decide(given).status.conditions, ConditionType.EXACT)
    assert found is not None
    assert found.status is ConditionStatus.FALSE


def trainer(**changes: Any) -> Progress:
    return replace(TRAINING, **changes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(seen(spec=ANY), ("0/?", None, None, None), id="nobody knows yet"),
        pytest.param(
            seen(spec=ANY, progress=trainer(total_steps=620)), ("310/620", "50%", "8m21s", 620), id="the trainer says it"
        ),
        pytest.param(
            seen(spec=ANY, progress=TRAINING, storage=storage(planned_steps=620)), ("310/620", "50%", "8m21s", 620),
            id="the plan in the head says it",
        ),
        pytest.param(seen(spec=ANY, status=status(steps=620)), ("0/620", "0%", None, 620), id="the status remembers"),
        pytest.param(
            seen(spec=ANY, status=status(steps=500, start_time=None)), ("0/?", None, None, None),
            id="but not what the spec said before the start",
        ),
        pytest.param(
            seen(progress=trainer(total_steps=620)), ("310/500", "62%", "5m9s", 500), id="the spec's word comes first"
        ),
        pytest.param(seen(spec=ANY, progress=TRAINING), ("310/?", None, None, None), id="no guess at the end"),
    ],
)  # fmt: skip
def test_steps_are_the_specs_or_what_the_trainer_makes_of_the_data(given, words):
    alive = replace(given, status=given.status.model_copy(update={"attempts": [attempt()]}), pods=(pod(),))
    told = decide(alive if given.progress is not None else given).status
    assert (told.step_of, told.progress, told.eta, told.steps) == words


def test_a_message_without_known_steps_names_none():
    told = decide(seen(spec=ANY, status=status(attempt()), pods=(pod(),), progress=TRAINING)).status
    assert told.message == "attempt 1 on node-a (spot): step 310, 1.6 s/step"


def test_an_artifact_of_steps_that_nobody_knew_makes_them_known():
    given = seen(spec=ANY, status=status(attempt()), pods=(ended(exit_code=0),), storage=storage(artifact=VERIFIED))
    told = decide(given).status
    assert (told.step_of, told.progress, told.steps) == ("500/500", "100%", 500)


def test_class_images_tell_how_far_and_at_what_cost():
    making = Progress(1, phase=Phase.GENERATING, phase_since=NOW - 60, done=12, total=100, heard=NOW)
    told = decide(seen(status=status(attempt()), pods=(pod(),), progress=making)).status
    assert told.message == "attempt 1 on node-a (spot): making class images: 12 of 100, $0.006 so far"
    assert told.generating_cost == "$0.006"
    later = NOW + 3600
    trains = replace(TRAINING, phase_since=NOW, heard=later)
    done = decide(seen(status=told, pods=(pod(),), progress=trains, now=later)).status
    assert done.generating_cost == "$0.006", "what comes after is no part of it"
    (entry,) = done.attempts
    assert (entry.generating_since, entry.generating_until) == (stamp(NOW - 60), stamp(NOW))


def test_class_images_of_an_attempt_that_was_taken_cost_until_its_end():
    made = attempt(generating_since=stamp(NOW - 60))
    taken = seen(status=status(made), pods=(ended(disruption="EvictionByEvictionAPI"),), now=NOW + 3600)
    told = decide(taken).status
    assert told.attempts[0].generating_until == stamp(NOW - 1)
    assert told.generating_cost == "$0.006"


def test_validation_pictures_tell_how_far_at_which_step():
    making = replace(TRAINING, phase=Phase.VALIDATING, done=2, total=4)
    told = decide(seen(status=status(attempt()), pods=(pod(),), progress=making)).status
    assert told.message == "attempt 1 on node-a (spot): making validation pictures: 2 of 4, at step 310 of 500"


def test_figures_of_speed_stand_in_the_status():
    fast = replace(TRAINING, images_per_second=2.514, mfu=0.3172, memory_bytes=13 * 2**30)
    told = decide(seen(status=status(attempt()), pods=(pod(),), progress=fast)).status
    assert (told.images_per_second, told.mfu, told.memory) == ("2.51", "32%", "13.0 GiB")


def test_what_a_checkpoint_takes_and_how_often_there_is_one_stand_in_the_status():
    saving = replace(TRAINING, save_seconds=0.8461, checkpoint_every_steps=37)
    told = decide(seen(status=status(attempt()), pods=(pod(),), progress=saving)).status
    assert (told.save_seconds, told.checkpoint_every) == ("0.85", 37)


def test_the_next_attempt_resumes_from_the_newest_checkpoint_and_says_what_was_lost():
    given = seen(
        status=status(attempt(durable_step=300, to_step=310), checkpoint=KNOWN, step=310),
        pods=(ended(disruption="EvictionByEvictionAPI"),),
        pools={"spot": pool(), "sure": pool("1.0", capacity="OnDemand", default=False)},
    )
    decision = decide(given)
    (create,) = (action for action in decision.actions if isinstance(action, CreatePod))
    assert create.attempt == 2
    assert create.resume_from == KNOWN.uri
    assert create.on_demand_price_per_hour == "1.0"
    assert decision.status.preemptions == 1
    assert decision.status.step == 310, "the step that people saw never goes down"
    preempted, created = decision.announcements
    assert preempted.reason == "Preempted"
    assert "10 steps to do again" in preempted.message
    assert "resuming at step 300" in created.message


def test_a_new_attempts_events_are_counted_from_one():
    given = seen(status=status(attempt(**CLOSED), event_sequence=57), pods=(ended(), pod(2)))
    assert decide(given).status.attempt == 2
    assert decide(given).status.event_sequence == 0


def test_a_save_within_the_notice_loses_no_step():
    words = Termination(exit_code=75, step=310, durable_step=310, saved=Saved.NEW)
    given = seen(status=status(attempt(to_step=310)), pods=(ended(exit_code=75, termination=words, deleting=True),))
    assert "no step lost" in decide(given).announcements[0].message


def test_a_waits_reason_is_told_once():
    given = seen(spec=spec(placement={"pools": ["nope"]}))
    first = decide(given)
    assert [one.reason for one in first.announcements] == ["UnknownPool"]
    assert decide(seen(spec=given.spec, status=first.status)).announcements == ()


def test_a_preemption_that_is_read_after_the_user_has_suspended_stays_one():
    over = ended(exit_code=75, deleting=True, disruption="EvictionByEvictionAPI")
    told = decide(seen(spec=spec(suspend=True), status=status(attempt()), pods=(over,))).status
    assert told.attempts[0].cause == "Preempted"
    ours = decide(seen(spec=spec(suspend=True), status=status(attempt(stopping="Suspended")), pods=(over,))).status
    assert ours.attempts[0].cause == "Suspended"
    assert not ours.preemptions


def test_a_lost_nodes_pod_does_not_keep_a_run_from_being_suspended():
    """It stays as long as its Node does, which may be for ever: and time suspended is not waited time."""
    gone = attempt(cause="NodeLost", reason="NodeNotReady", message="lost", ended=stamp(NOW - 300))
    zombie = pod(deleting=True, has_finalizer=False)
    silent = {"node-a": NodeSeen("node-a", ready=False, not_ready_since=NOW - 400)}
    told = decide(seen(spec=spec(suspend=True), status=status(gone), pods=(zombie,), nodes=silent))
    assert (told.reason, told.status.activity) == ("Suspended", "Suspended")
    alive = decide(
        seen(spec=spec(suspend=True), status=status(attempt(stopping="Suspended")), pods=(pod(deleting=True),))
    )
    assert alive.reason == "Suspending"


@pytest.mark.parametrize("deleting", [True, False], ids=["its pod is being deleted", "it saw the tombstone first"])
def test_an_attempt_that_a_deletion_ends_counts_as_stopped_however_it_found_out(deleting: bool):
    """Its head is a tombstone, so that its trainer says that it was fenced: but nobody else holds the head."""
    fenced = ended(exit_code=76, deleting=deleting)
    told = decide(seen(run=DELETING, status=status(attempt()), pods=(fenced,)))
    assert [cause for cause, _ in told.ended] == ["Suspended"]
    assert [cause for cause, _ in decide(seen(status=status(attempt()), pods=(fenced,))).ended] == ["Fenced"]


def test_deciding_twice_on_the_same_writes_the_same_status():
    given = seen(status=status(attempt()), pods=(pod(),), progress=TRAINING)
    once = decide(given).status
    again = decide(seen(status=once, pods=(pod(),), progress=TRAINING)).status
    assert again == once


@pytest.mark.parametrize(
    "over",
    [
        {"pods": (ended(exit_code=0),), "storage": storage(artifact=VERIFIED)},
        {"run": DELETING, "pods": (pod(),), "progress": replace(TRAINING, checkpoint=KNOWN_ENTRY)},
    ],
    ids=["succeeded", "deleted"],
)
def test_no_status_names_a_checkpoint_whose_folder_goes(over: dict[str, Any]):
    decision = decide(seen(status=status(attempt(), checkpoint=KNOWN, step=300), **over))
    assert decision.status.checkpoint is None
    assert decision.status.step is not None
    assert decision.status.step >= 300
    assert "CheckpointCommitted" not in [one.reason for one in decision.announcements]


def test_a_succeeded_run_stays_so_while_it_is_deleted():
    given = seen(run=DELETING, status=status(attempt(**CLOSED), conditions=[SUCCEEDED]))
    kept = find(decide(given).status.conditions, ConditionType.SUCCEEDED)
    assert kept is not None
    assert kept.status is ConditionStatus.TRUE


def test_an_older_attempt_that_came_back_beside_a_newer_one_is_ended():
    # Its node was lost, the next attempt was made, the operator died before writing that down, and the node came back.
    both = status(attempt(1), attempt(2, started=None))
    pods = (pod(1), pod(2, phase="Pending", node=None, started=None))
    decision = decide(seen(status=both, pods=pods))
    assert [action.uid for action in decision.actions if isinstance(action, DeletePod)] == ["pod-1"]
    again = decide(seen(status=both, pods=(replace(pods[0], deleting=True), pods[1])))
    assert not [action for action in again.actions if isinstance(action, DeletePod)]
