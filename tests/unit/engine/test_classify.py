"""Why an attempt ended: the rows of the field's end states, one line each."""

# ruff: noqa: E501 - a table is read by its rows

import pytest

from lorafinetune.contract.event import Saved, Termination
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import ArtifactEntry
from lorafinetune.engine.classify import Cause, Ending, Hold, classify
from lorafinetune.engine.lost import is_lost
from lorafinetune.engine.observation import NodeSeen, StorageSeen
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.verdicts import evidence_of, verdict
from tests.unit.engine.given import NOW, attempt, ended, evidence, pod, seen, status

HEALTHY = NodeSeen("node-a", ready=True)
NOT_READY = NodeSeen("node-a", ready=False, not_ready_since=NOW - 5)
NOTICED = NodeSeen("node-a", ready=True, notice="karpenter.sh/disrupted")
YIELDED = Termination(exit_code=75, step=37, durable_step=37, saved=Saved.NEW)

ROWS = [
    # name, pod, node, cause, words in the message
    ("exit 0", ended(exit_code=0, phase="Succeeded"), HEALTHY, Cause.FINISHED, "artifact"),
    ("exit 0 though disrupted", ended(exit_code=0, disruption="TerminationByKubelet"), HEALTHY, Cause.FINISHED, ""),
    ("scheduler preemption", ended(disruption="PreemptionByScheduler", deleting=True), HEALTHY, Cause.PREEMPTED, "higher priority"),
    ("NoExecute taint", ended(disruption="DeletionByTaintManager", deleting=True), HEALTHY, Cause.PREEMPTED, ""),
    ("eviction API", ended(disruption="EvictionByEvictionAPI", deleting=True), HEALTHY, Cause.PREEMPTED, ""),
    ("eviction API, saved in time", ended(exit_code=75, disruption="EvictionByEvictionAPI", termination=YIELDED), HEALTHY, Cause.PREEMPTED, "step 37 was saved within the notice"),
    ("node object removed", ended(exit_code=None, disruption="DeletionByPodGC"), None, Cause.PREEMPTED, ""),
    ("unknown disruption", ended(disruption="DeletionByGCPControllerManager"), HEALTHY, Cause.PREEMPTED, ""),
    ("graceful node shutdown", ended(pod_reason="Terminated", disruption="TerminationByKubelet"), HEALTHY, Cause.PREEMPTED, ""),
    ("old graceful shutdown", ended(pod_reason="Shutdown", exit_code=None), HEALTHY, Cause.PREEMPTED, "shut down"),
    ("bound to a node shutting down", ended(pod_reason="NodeShutdown", exit_code=None), HEALTHY, Cause.PREEMPTED, ""),
    ("VM back under the same name", ended(pod_reason="NodeAffinity", exit_code=None), HEALTHY, Cause.INFRASTRUCTURE, "refused"),
    ("admission error", ended(pod_reason="UnexpectedAdmissionError", exit_code=None), HEALTHY, Cause.INFRASTRUCTURE, ""),
    ("out of gpu", ended(pod_reason="OutOfnvidia.com/gpu", exit_code=None), HEALTHY, Cause.INFRASTRUCTURE, ""),
    ("kubelet made room", ended(pod_reason="Preempting"), HEALTHY, Cause.PREEMPTED, ""),
    ("node pressure", ended(pod_reason="Evicted", disruption="TerminationByKubelet"), HEALTHY, Cause.INFRASTRUCTURE, "evicted"),
    ("own ephemeral limit", ended(pod_reason="Evicted", pod_message="Pod ephemeral local storage usage exceeds"), HEALTHY, Cause.ERROR, "ephemeral"),
    ("OOM", ended(container_reason="OOMKilled"), HEALTHY, Cause.OUT_OF_MEMORY, "gradientCheckpointing"),
    ("OOM on a disrupted pod", ended(container_reason="OOMKilled", disruption="EvictionByEvictionAPI"), HEALTHY, Cause.OUT_OF_MEMORY, ""),
    ("GPU out of memory", ended(exit_code=71), HEALTHY, Cause.OUT_OF_MEMORY, "batchSize"),
    ("plain delete", ended(exit_code=75, deleting=True, termination=YIELDED), HEALTHY, Cause.PREEMPTED, "saved"),
    ("asked to stop, and the bucket was away", ended(exit_code=75, deleting=True, termination=Termination(exit_code=75, step=16, durable_step=10, saved=Saved.NONE)), HEALTHY, Cause.PREEMPTED, "nothing more was saved"),
    ("plain delete, killed", ended(deleting=True), HEALTHY, Cause.PREEMPTED, ""),
    ("deleted before it had a node", pod(phase="Pending", node=None, deleting=True, started=None), None, Cause.PREEMPTED, ""),
    ("killed, node noticed", ended(), NOTICED, Cause.PREEMPTED, "karpenter.sh/disrupted"),
    ("killed, node not ready", ended(), NOT_READY, Cause.PREEMPTED, "silent"),
    ("killed, node gone", ended(), None, Cause.PREEMPTED, "gone"),
    ("yielded without a mark", ended(exit_code=75, termination=YIELDED), HEALTHY, Cause.PREEMPTED, "saved"),
    ("fenced", ended(exit_code=76), HEALTHY, Cause.FENCED, ""),
    ("invalid", ended(exit_code=78, termination=Termination(exit_code=78, reason="EmptyDataset", message="no image")), HEALTHY, Cause.INVALID, "no image"),
    ("invalid while the node goes", ended(exit_code=78, disruption="EvictionByEvictionAPI"), NOTICED, Cause.INVALID, ""),
    ("invalid, without a word", ended(exit_code=78), HEALTHY, Cause.INVALID, "cannot work"),
    ("storage away", ended(exit_code=74), HEALTHY, Cause.INFRASTRUCTURE, "bucket"),
    ("storage away while the node goes", ended(exit_code=74, deleting=True), NOTICED, Cause.PREEMPTED, ""),
    ("hub away", ended(exit_code=74, termination=Termination(exit_code=74, reason="HubUnreachable", message="the hub")), HEALTHY, Cause.INFRASTRUCTURE, "the hub"),
    ("keys expired", ended(exit_code=77, termination=Termination(exit_code=77, reason="AccessDenied", message="check the keys")), HEALTHY, Cause.INFRASTRUCTURE, "check"),
    ("bucket refuses, without a word", ended(exit_code=77), HEALTHY, Cause.INFRASTRUCTURE, "denied"),
    ("disk full", ended(exit_code=73, termination=Termination(exit_code=73, reason="DiskFull", message="needs 7 GB")), HEALTHY, Cause.INFRASTRUCTURE, "7 GB"),
    ("disk full, without a word", ended(exit_code=73), HEALTHY, Cause.INFRASTRUCTURE, "disk"),
    ("disk full while the node goes", ended(exit_code=73, deleting=True), NOTICED, Cause.PREEMPTED, ""),
    ("loss of NaN", ended(exit_code=72, termination=Termination(exit_code=72, reason="NaNLoss", message="with cat.png")), HEALTHY, Cause.ERROR, "cat.png"),
    ("loss of NaN, without a word", ended(exit_code=72), HEALTHY, Cause.ERROR, "learningRate"),
    ("loss of NaN while the node goes", ended(exit_code=72, disruption="X"), NOTICED, Cause.ERROR, "learningRate"),
    ("training error", ended(exit_code=1, termination=Termination(exit_code=1, reason="TrainerError", message="it broke")), HEALTHY, Cause.ERROR, "broke"),
    ("training error while the node goes", ended(exit_code=1, disruption="X", termination=Termination(exit_code=1, reason="TrainerError")), NOTICED, Cause.ERROR, ""),
    ("crash in the rubble of a shutdown", ended(exit_code=1, disruption="TerminationByKubelet"), HEALTHY, Cause.PREEMPTED, ""),
    ("crash", ended(exit_code=1, ended=NOW - 31), HEALTHY, Cause.ERROR, "exit code 1"),
    ("bare 137 on spot, late", ended(ended=NOW - 31), HEALTHY, Cause.PREEMPTED, "spot"),
    ("bare 143 on spot, late", ended(exit_code=143, ended=NOW - 31), HEALTHY, Cause.PREEMPTED, "spot"),
    ("bare 137 on demand, late", ended(ended=NOW - 31, capacity_type="OnDemand"), HEALTHY, Cause.INFRASTRUCTURE, "137"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "node", "cause", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_end_state_has_its_cause(given, node, cause, words):
    verdict = classify(evidence(given, node, progress=None, suspended=False))
    assert isinstance(verdict, Ending)
    assert verdict.cause is cause
    assert words in verdict.message
    assert verdict.reason.isidentifier() or "/" in verdict.reason


@pytest.mark.parametrize(
    ("code", "reason"),
    [(72, "NaNLoss"), (73, "DiskFull"), (74, "StorageUnreachable"), (76, "Fenced"), (77, "AccessDenied")],
)
def test_a_code_without_a_word_has_its_reason(code: int, reason: str):
    verdict = classify(evidence(ended(exit_code=code), HEALTHY, progress=None, suspended=False))
    assert isinstance(verdict, Ending)
    assert verdict.reason == reason


def test_every_code_of_the_trainer_but_the_plain_one_is_known_without_a_word():
    for code in set(ExitCode) - {ExitCode.FAILED}:
        verdict = classify(evidence(ended(exit_code=code), HEALTHY, progress=None, suspended=False))
        assert isinstance(verdict, Ending)
        assert verdict.reason != "TrainerFailed"


@pytest.mark.parametrize("code", [1, 73, 74, 76, 77, 78])
def test_what_the_last_event_said_stands_for_a_termination_message_that_is_missing(code: int):
    told = Progress(1, reason="SomeReason", message="mend it")
    verdict = classify(evidence(ended(exit_code=code), HEALTHY, progress=told, suspended=False))
    assert isinstance(verdict, Ending)
    assert (verdict.reason, verdict.message) == ("SomeReason", "mend it")
    another = Progress(2, reason="SomeReason", message="mend it")
    assert evidence_of(attempt(1), ended(1), seen(progress=another)).progress is None


def test_a_bare_kill_waits_for_late_evidence():
    assert classify(evidence(ended(ended=NOW - 10), HEALTHY, progress=None, suspended=False)) == Hold(20)


def test_an_announced_artifact_outweighs_the_kill_that_followed():
    progress = Progress(1, artifact=ArtifactEntry(attempt=1, step=500, manifest_sha256="0" * 64))
    verdict = classify(evidence(ended(disruption="EvictionByEvictionAPI"), HEALTHY, progress=progress, suspended=False))
    assert isinstance(verdict, Ending)
    assert verdict.cause is Cause.FINISHED


def test_another_attempts_artifact_proves_nothing():
    published = ArtifactEntry(attempt=2, step=500, manifest_sha256="0" * 64)
    verdict = classify(evidence(ended(disruption="X"), HEALTHY, storage=StorageSeen(published=published)))
    assert isinstance(verdict, Ending)
    assert verdict.cause is Cause.PREEMPTED


def test_a_suspended_runs_stop_is_no_preemption():
    verdict = classify(evidence(ended(exit_code=75, deleting=True), HEALTHY, progress=None, suspended=True))
    assert isinstance(verdict, Ending)
    assert verdict.cause is Cause.SUSPENDED


@pytest.mark.parametrize(("capacity", "cause"), [("Spot", Cause.PREEMPTED), ("OnDemand", Cause.INFRASTRUCTURE)])
def test_a_vanished_pod_is_judged_by_its_capacity(capacity, cause):
    ending = verdict(attempt(1, capacity_type=capacity), seen(status=status(attempt(1))))
    assert isinstance(ending, Ending)
    assert (ending.cause, ending.reason) == (cause, "PodVanished")


class TestLost:
    def test_a_ready_node_loses_nothing(self):
        assert is_lost(pod(), HEALTHY, progress=None, now=NOW) is None

    def test_a_silent_node_is_held_before_it_is_given_up(self):
        assert is_lost(pod(), NOT_READY, progress=None, now=NOW) == Hold(5)

    def test_a_silent_node_is_given_up(self):
        node = NodeSeen("node-a", ready=False, not_ready_since=NOW - 11)
        verdict = is_lost(pod(), node, progress=None, now=NOW)
        assert isinstance(verdict, Ending)
        assert verdict.cause is Cause.NODE_LOST

    def test_a_trainer_that_speaks_is_alive_whatever_its_node_says(self):
        node = NodeSeen("node-a", ready=False, not_ready_since=NOW - 60)
        assert is_lost(pod(), node, progress=Progress(1, heard=NOW - 2), now=NOW) == Hold(8)

    def test_a_node_that_we_have_not_heard_of_yet_is_not_gone(self):
        waited_long_for_its_node = pod(created=NOW - 500, bound=NOW - 2)
        assert is_lost(waited_long_for_its_node, None, progress=None, now=NOW) == Hold(8)

    def test_another_attempts_words_do_not_keep_it_alive(self):
        node = NodeSeen("node-a", ready=False, not_ready_since=NOW - 60)
        assert isinstance(is_lost(pod(), node, progress=Progress(2, heard=NOW), now=NOW), Ending)
