"""Why an attempt ended, on real nodes: the words that a user reads after a machine was shut down under a run."""

from __future__ import annotations

from examples.stage import Stage
from tests.e2e.test_run import EVERY, LONG, attempt_of, messages, training, wait_for_attempt, wait_for_step


def test_a_graceful_shutdown_is_a_preemption_and_the_same_name_another_machine(stage: Stage, home: str) -> None:
    stage.add_pool("gke", price="0.3", default=False)
    stage.add_node("gke-1", "gke", cloud="gke", capacity_type="spot")
    try:
        stage.cluster.apply(stage.run(home, "moved", placement={"pools": ["gke"]}, **training(LONG)))
        step = wait_for_step(stage, home, "moved", EVERY + 1)
        stage.cluster.faults.preempt("gke-1", notice=12, replace_after=1)
        wait_for_attempt(stage, home, "moved", 2)
        stage.wait("the resume is told", lambda: "fromStep" in attempt_of(stage, home, "moved", 2), 60)
        first, second = (attempt_of(stage, home, "moved", number) for number in (1, 2))
        assert (first["cause"], first["exitCode"]) == ("Preempted", 75), first
        assert first["reason"] in ("TerminationByKubelet", "Terminated"), first
        assert "gke-1" in first["message"], first
        assert second["node"] == first["node"]
        assert second["machine"] != first["machine"], "it has booted again"
        assert second["fromStep"] >= max(step, first["toStep"] - 1)
        assert [note for note in messages(stage, home, "Preempted") if first["message"] in note]
        assert not messages(stage, home, "EndingCorrected")
    finally:
        stage.cluster.kubectl("delete", "lft", "moved", "-n", home, "--timeout=120s", "--ignore-not-found")
        stage.cluster.remove_node("gke-1")
