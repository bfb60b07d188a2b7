"""What a run may take at most, what becomes of it there, and that it is looked at in time."""

# ruff: noqa: E501 - a table is read by its rows

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.api.status import ArtifactStatus, CheckpointStatus, ConditionStatus, LimitStatus, TimeStatus
from lorafinetune.contract.event import Phase, Saved, Termination
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine.conditions import ConditionType, find
from lorafinetune.engine.decision import CreatePod, DeletePod, Job, ReadEvents, StartJob
from lorafinetune.engine.observation import ArtifactChecked, Observation, StorageSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, READY, attempt, ended, pod, pool, seen, spec, status

HOUR = 3600.0
KNOWN = CheckpointStatus(attempt=1, step=300, uri="s3://loras/x/checkpoints/1-300/", manifest_sha256="0" * 64)
ENTRY = CheckpointEntry(attempt=1, step=50, manifest_sha256="0" * 64)
ARTIFACT = ArtifactStatus(uri="s3://loras/a/", file="lora.safetensors", sha256="0" * 64, size=1)
TRAINING = Progress(1, sequence=9, step=310, phase=Phase.TRAINING, heard=NOW - 1)
CLOSED = {
    "cause": "LimitReached",
    "reason": "MaxCostReached",
    "ended": stamp(NOW - 9),
    "message": "so; step 310 was saved",
}


def limited(**limits: Any):
    return spec(limits=limits)


def alive(begun: float = HOUR, **changes: Any) -> Observation:
    """An attempt at $0.36 an hour that has had its node for *begun* seconds; it committed step 300."""
    entry = attempt(price_per_hour="0.36", started=stamp(NOW - begun), scheduled=stamp(NOW - begun))
    plain: dict[str, Any] = {
        "status": status(entry, checkpoint=KNOWN, step=310), "pods": (pod(started=NOW - begun),), "progress": TRAINING,
    }  # fmt: skip
    return seen(**(plain | changes))


def reached(*later: Any, since: float = 60.0, checkpoint: CheckpointStatus | None = KNOWN, **changes: Any) -> Any:
    """The status of a run whose first attempt was ended at the limit, and the attempts that came after."""
    limit = LimitStatus(reason="MaxCostReached", message="too dear", time=stamp(NOW - since), attempt=1)
    return status(attempt(**CLOSED), *later, limit=limit, checkpoint=checkpoint, **changes)


PUBLISH = limited(maxCost="0.36", atLimit="Publish")
FAIL = limited(maxCost="0.36")
VERIFIED = ArtifactChecked(True, True, "Verified", "", NOW, 300, ARTIFACT, step=300)
VERIFIED_ALL = ArtifactChecked(True, True, "Verified", "", NOW, 500, ARTIFACT, step=500)
READ = replace(READY, read=NOW)


def tries(*causes: str, ended: float = NOW - 400) -> Any:
    return reached(*(attempt(number, cause=cause, ended=stamp(ended), message="away") for number, cause in enumerate(causes, 2)))  # fmt: skip


def storage(**known: Any) -> StorageSeen:
    return replace(READ, **known)


ROWS: list[tuple[str, Observation, str, str, list[Any]]] = [
    # name, observation, phase, reason, actions (by type, or the action itself)
    ("a cost that is reached: first it is written down", alive(spec=FAIL), "Running", "MaxCostReached", []),
    ("not before", alive(HOUR - 2, spec=FAIL), "Running", "Training", []),
    ("a deadline", alive(spec=limited(deadline=stamp(NOW))), "Running", "DeadlineExceeded", []),
    ("still a second", alive(spec=limited(deadline=stamp(NOW + 1))), "Running", "Training", []),
    ("in small letters", alive(spec=limited(deadline=stamp(NOW).lower())), "Running", "DeadlineExceeded", []),
    ("as long as it may take, from its creation", alive(spec=limited(maxDuration="5m")), "Running", "MaxDurationReached", []),
    ("the time for which it was suspended is its own", alive(spec=limited(maxDuration="5m"), status=status(attempt(), times=[TimeStatus(activity="Suspended", seconds=60)])), "Running", "Training", []),
    ("other waits count", alive(spec=limited(maxDuration="5m"), status=status(attempt(), times=[TimeStatus(activity="NoNodeFits", seconds=60)])), "Running", "MaxDurationReached", []),
    ("a wait for a bucket ends too", seen(spec=limited(maxDuration="5m"), status=status(start_time=None), storage=StorageSeen()), "Pending", "MaxDurationReached", []),
    ("so does one for an image that cannot be pulled", seen(spec=limited(deadline=stamp(NOW)), status=status(attempt(started=None)), pods=(pod(phase="Pending", waiting_reason="ImagePullBackOff", started=None),)), "Starting", "DeadlineExceeded", []),
    ("what is marked is ended", alive(spec=FAIL, status=status(attempt(stopping="LimitReached", message="so"), limit=reached().limit)), "Running", "Moving", [DeletePod]),
    ("one that is being taken away is left to it, and no more is made", alive(spec=FAIL, pods=(pod(deleting=True),)), "Pending", "MaxCostReached", []),
    ("one that has all steps may publish them", alive(spec=FAIL, progress=replace(TRAINING, phase=Phase.EXPORTING, phase_since=NOW - 599)), "Running", "Exporting", []),
    ("but not for ever", alive(spec=FAIL, progress=replace(TRAINING, phase=Phase.EXPORTING, phase_since=NOW - 601)), "Running", "MaxCostReached", []),
    ("one that has published is verified, limit or not", alive(spec=limited(maxCost="0.30"), pods=(ended(exit_code=0, started=NOW - HOUR),), progress=None), "Running", "Verifying", [StartJob(Job.VERIFY)]),
    ("and has succeeded", alive(spec=limited(maxCost="0.30"), pods=(ended(exit_code=0, started=NOW - HOUR),), storage=storage(artifact=VERIFIED_ALL)), "Succeeded", "ArtifactVerified", []),
    ("atLimit Fail: the end", seen(spec=FAIL, status=reached()), "Failed", "MaxCostReached", []),
    ("atLimit Publish: one more attempt, which publishes", seen(spec=PUBLISH, status=reached()), "Starting", "AttemptCreated", [CreatePod]),
    ("no checkpoint is known: the head is read first", seen(spec=PUBLISH, status=reached(checkpoint=None)), "Pending", "ReadingHead", [StartJob(Job.READ)]),
    ("there is none: the end", seen(spec=PUBLISH, status=reached(checkpoint=None), storage=READ), "Failed", "MaxCostReached", []),
    ("there is one after all", seen(spec=PUBLISH, status=reached(checkpoint=None), storage=storage(newest=ENTRY)), "Starting", "AttemptCreated", [CreatePod]),
    ("the attempt that publishes lives in peace", seen(spec=PUBLISH, status=reached(attempt(2)), pods=(pod(2, started=NOW - 9),), storage=READ), "Starting", "TrainerStarting", []),
    ("it is preempted: another one", seen(spec=PUBLISH, status=tries("Preempted")), "Starting", "AttemptCreated", [CreatePod]),
    ("five times: the end", seen(spec=PUBLISH, status=tries(*["Preempted"] * 5)), "Failed", "MaxCostReached", []),
    ("a suspend, or a dry pool, is no try", seen(spec=PUBLISH, status=tries(*["Preempted"] * 4, "Suspended", "NoCapacity", "Moved")), "Starting", "AttemptCreated", [CreatePod]),
    ("what cannot work is not tried again", seen(spec=PUBLISH, status=tries("Invalid")), "Failed", "MaxCostReached", []),
    ("publishing that takes more than an hour is ended", seen(spec=PUBLISH, status=reached(attempt(2), since=3601), pods=(pod(2),)), "Running", "MaxCostReached", []),
    ("a node that does not come within an hour too", seen(spec=PUBLISH, status=reached(attempt(2, started=None), since=3601), pods=(pod(2, phase="Pending", node=None, started=None, unschedulable="0/3"),)), "Starting", "MaxCostReached", []),
    ("and then the run ends", seen(spec=PUBLISH, status=reached(attempt(2, **CLOSED), since=3601)), "Failed", "MaxCostReached", []),
    ("what was published is verified, at its step", seen(spec=PUBLISH, status=reached(attempt(2)), pods=(ended(2, exit_code=0),)), "Running", "Verifying", [StartJob(Job.VERIFY, 300)]),
    ("an answer about fewer steps is none", seen(spec=PUBLISH, status=reached(attempt(2)), pods=(ended(2, exit_code=0),), storage=storage(artifact=replace(VERIFIED, steps=299))), "Running", "Verifying", [StartJob(Job.VERIFY, 300)]),
    ("published: the run has failed all the same", seen(spec=PUBLISH, status=reached(attempt(2)), pods=(ended(2, exit_code=0),), storage=storage(artifact=VERIFIED)), "Failed", "MaxCostReached", []),
    ("suspended at its limit it waits", seen(spec=spec(suspend=True, limits={"maxCost": "0.36", "atLimit": "Publish"}), status=reached(attempt(2)), pods=(pod(2),)), "Suspended", "Suspending", []),
    ("and has its hour again when it goes on", seen(spec=PUBLISH, status=reached(attempt(2, cause="Suspended", ended=stamp(NOW - 9000)), since=9000, activity="Suspended", activity_since=stamp(NOW - 8990))), "Starting", "AttemptCreated", [CreatePod]),
    ("raising the limit afterwards changes nothing", seen(spec=limited(maxCost="99"), status=reached()), "Failed", "MaxCostReached", []),
    ("deleted while it publishes", seen(run={"deleting_since": NOW - 1}, spec=PUBLISH, status=reached(attempt(2)), pods=(pod(2),)), "Deleting", "Stopping", [DeletePod, StartJob(Job.BURY)]),
    ("suspended, no limit is looked at", seen(spec=spec(suspend=True, limits={"deadline": stamp(NOW - 9)}), status=status(attempt(cause="Suspended", ended=stamp(NOW - 99)))), "Suspended", "Suspended", []),
    ("too many errors, Publish: no more is trained", seen(spec=PUBLISH, status=status(attempt(cause="Error", ended=stamp(NOW - 90), message="boom"), attempt(2, cause="Error", reason="TrainerFailed", message="boom", ended=stamp(NOW - 9)), checkpoint=KNOWN)), "Pending", "TrainerFailed", []),
    ("but not for input that cannot work", seen(spec=PUBLISH, status=status(attempt(cause="Invalid", reason="EmptyDataset", ended=stamp(NOW - 9)), checkpoint=KNOWN)), "Failed", "EmptyDataset", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "phase", "reason", "actions"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_rule(given, phase, reason, actions):
    decision = decide(given)
    assert (decision.status.phase, decision.reason) == (phase, reason), decision.message
    done = [one for one in decision.actions if not isinstance(one, ReadEvents)]
    assert len(done) == len(actions), done
    for action, wanted in zip(done, actions, strict=True):
        assert isinstance(action, wanted) if isinstance(wanted, type) else action == wanted


def test_at_the_limit_the_attempt_is_marked_with_the_limit_and_what_was_used():
    told = decide(alive(HOUR + 60, spec=FAIL))
    assert told.message == "not done for spec.limits.maxCost ($0.36): $0.366 spent"
    limit, (entry,) = told.status.limit, told.status.attempts
    assert limit is not None
    assert (limit.reason, limit.attempt, limit.message) == ("MaxCostReached", 1, told.message)
    assert (entry.stopping, entry.reason) == ("LimitReached", "MaxCostReached")
    words = Termination(exit_code=75, step=310, durable_step=310, saved=Saved.NEW)
    over = ended(exit_code=75, deleting=True, started=NOW - HOUR - 60, termination=words)
    after = decide(seen(spec=FAIL, status=told.status, pods=(over,), progress=TRAINING)).status
    assert after.attempts[0].cause == "LimitReached"
    assert after.attempts[0].durable_step == 310
    assert after.preemptions == 0


def test_the_attempt_after_the_limit_trains_nothing():
    decision = decide(seen(spec=PUBLISH, status=reached()))
    (create,) = decision.actions
    assert isinstance(create, CreatePod)
    assert (create.attempt, create.publish, create.resume_from) == (2, True, KNOWN.uri)
    assert decision.message == "attempt 2 on pool spot, to publish the LoRA of step 300"
    (plain,) = decide(seen()).actions
    assert isinstance(plain, CreatePod)
    assert not plain.publish


def test_what_was_published_at_a_limit_stands_in_the_status_of_a_run_that_failed():
    given = seen(
        spec=PUBLISH, status=reached(attempt(2)), pods=(ended(2, exit_code=0),), storage=storage(artifact=VERIFIED)
    )
    decision = decide(given)
    succeeded = find(decision.status.conditions, ConditionType.SUCCEEDED)
    assert succeeded is not None
    assert (succeeded.status, succeeded.reason) == (ConditionStatus.FALSE, "MaxCostReached")
    assert decision.status.artifact == ARTIFACT
    assert decision.status.completion_time is not None
    assert decision.message == "too dear; the LoRA of step 300 is published at s3://loras/a/lora.safetensors"
    rest = decide(replace(given, status=decision.status, pods=()))
    assert (rest.status.phase, rest.actions) == ("Failed", ())


def test_a_run_that_ends_at_its_limit_says_what_becomes_of_its_checkpoint():
    assert decide(seen(spec=FAIL, status=reached())).message == (
        "too dear; the checkpoint of step 300 stays in the bucket until the run is deleted"
    )
    assert decide(seen(spec=FAIL, status=reached(checkpoint=None), storage=READ)).message == (
        "too dear; no checkpoint had been made"
    )
    assert "could not be published: away" in decide(seen(spec=PUBLISH, status=tries(*["Preempted"] * 5))).message


@pytest.mark.parametrize(
    ("causes", "least"),
    [
        pytest.param(["Preempted"] * 3, None, id="preemptions cost no pause"),
        pytest.param(["Infrastructure"], 2.5, id="one that failed"),
        pytest.param(["Infrastructure"] * 4, 20.0, id="one after the other"),
        pytest.param(["Infrastructure"] * 3 + ["Preempted"], None, id="not what was before the last"),
    ],
)
@pytest.mark.parametrize("most", [0, 6])
def test_publishing_is_tried_again_after_a_growing_pause(causes, least, most):
    """Whether or not the budget of the training is spent by it."""
    limits = {"maxCost": "0.36", "atLimit": "Publish", "attempts": {"infrastructure": most}}
    given = seen(spec=spec(limits=limits), status=tries(*causes, ended=NOW - 1), storage=READ)
    decision = decide(given)
    if least is None:
        assert decision.reason == "AttemptCreated"
    else:
        assert decision.reason == "BackingOff"
        assert least - 1 <= (decision.look_again or 0.0) <= 2 * least


LOOKS: list[tuple[str, Observation, float]] = [
    # name, observation, seconds after which it is looked at again
    ("the cost, at the present price", alive(HOUR - 12, spec=FAIL), 12.0),
    ("the deadline", alive(spec=limited(deadline=stamp(NOW + 7))), 7.0),
    ("the duration", alive(spec=limited(maxDuration="5m3s")), 3.0),
    ("the nearest of them", alive(HOUR - 12, spec=limited(maxCost="0.36", maxDuration="5m3s")), 3.0),
    ("the end of publishing", seen(spec=PUBLISH, status=reached(attempt(2), since=3590), pods=(pod(2),), storage=READ), 10.0),
    ("the end of what the last steps may take", alive(spec=FAIL, progress=replace(TRAINING, phase=Phase.EXPORTING, phase_since=NOW - 591)), 9.0),
]  # fmt: skip


@pytest.mark.parametrize(("given", "seconds"), [row[1:] for row in LOOKS], ids=[row[0] for row in LOOKS])
def test_a_limit_is_looked_at_in_the_moment_in_which_it_is_reached(given, seconds):
    assert decide(given).look_again == pytest.approx(seconds, abs=0.01)


def test_a_cost_is_overshot_by_one_look_at_most():
    """Looking only when told to, the operator finds the limit within a second of it."""
    given, now = alive(0, spec=FAIL), NOW
    while True:
        decision = decide(replace(given, now=now, progress=replace(TRAINING, heard=now)))
        if decision.status.limit is not None:
            break
        assert decision.look_again is not None
        now += decision.look_again
    assert NOW + HOUR <= now <= NOW + HOUR + 1


def test_a_deadline_that_was_over_before_the_run_was_made_is_called_that():
    fresh = {"status": status(start_time=None), "storage": StorageSeen()}
    over = decide(seen(spec=limited(deadline="2020-01-01T00:00:00Z"), **fresh))
    assert (over.reason, over.actions) == ("DeadlineExceeded", ())
    assert "was over when the run was created" in over.message
    assert over.message.endswith("create it anew with a later one, or with none")
    late = decide(seen(spec=limited(deadline=stamp(NOW - 1)), **fresh))
    assert late.message.startswith("not done by spec.limits.deadline")


def test_a_price_of_nothing_reaches_no_cost():
    free = alive(spec=FAIL, pools={"spot": pool("0")}, status=status(attempt(price_per_hour="0")))
    assert decide(free).reason == "Training"


def test_a_run_without_limits_is_not_looked_at_sooner():
    assert decide(alive()).next_look == decide(alive(spec=limited(maxCost="9"))).next_look


def test_no_progress_is_not_said_before_the_head_was_read():
    rows = [
        attempt(number, cause="Preempted", from_step=0, started=stamp(NOW - 60), ended=stamp(NOW - 9), message="x")
        for number in range(1, 13)
    ]
    given = seen(status=status(*rows))
    first = decide(given)
    assert (first.reason, first.actions) == ("ReadingHead", (StartJob(Job.READ),))
    assert decide(replace(given, storage=READ)).reason == "NoProgress"
    found = storage(newest=ENTRY.model_copy(update={"attempt": 12}))
    assert decide(replace(given, storage=found)).reason == "AttemptCreated"
