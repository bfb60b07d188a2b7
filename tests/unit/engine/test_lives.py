"""Whole lives of a run in a small world: every fault at every moment, the operator crashing between any two writes.

Laws: at no time are there two live attempts that could count; the step that people see never goes down; every state
has a next action or a named wait; and once the faults end, the run succeeds, or is gone without a pod left.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lorafinetune.api.status import ArtifactStatus, LoRAFineTuneStatus
from lorafinetune.contract.event import Phase, Saved, Termination
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine.decision import (
    AddFinalizer,
    CreatePod,
    Decision,
    DeletePod,
    Job,
    ReleasePod,
    RemoveFinalizer,
    StartJob,
)
from lorafinetune.engine.observation import (
    ArtifactChecked,
    NodeSeen,
    Observation,
    PodSeen,
    RunSeen,
    StorageChecked,
    StorageSeen,
    Tidied,
)
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.rules import decide
from tests.unit.engine.given import NOW, UID, pool, spec

STEPS = 20
EVERY = 5
ZERO = "0" * 64


class Crash(Exception):
    """The operator dies here."""


@dataclass
class World:
    """Pods, nodes, a bucket and a trainer, as far as the engine can tell them from real ones."""

    now: float = NOW
    run: RunSeen = field(default_factory=lambda: RunSeen("default", "timber", UID, 1, NOW))
    status: LoRAFineTuneStatus = field(default_factory=LoRAFineTuneStatus)
    pods: dict[int, PodSeen] = field(default_factory=dict)
    nodes: dict[str, NodeSeen] = field(default_factory=dict)
    progress: Progress | None = None
    storage: StorageSeen = field(default_factory=StorageSeen)
    suspended: bool = False
    gone: bool = False
    fence: int = 0
    durable: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    artifact: bool = False
    marked: bool = False
    last: Decision | None = None

    def observe(self) -> Observation:
        return Observation(
            run=self.run,
            spec=spec(training={"steps": STEPS}, suspend=self.suspended),
            status=self.status,
            pods=tuple(self.pods[number] for number in sorted(self.pods)),
            nodes=dict(self.nodes),
            pools={"spot": pool()},
            now=self.now,
            progress=self.progress,
            storage=self.storage,
        )

    def operate(self, crash_after: int | None = None) -> None:
        """One pass of the operator, which dies before its *crash_after*-th write."""
        if self.gone:
            return
        decision = self.last = decide(self.observe())
        assert decision.message, decision
        assert decision.look_again is not None or decision.reason in RESTS | EVENT_DRIVEN, decision
        writes = [action for action in decision.actions if not isinstance(action, RemoveFinalizer)]
        for count, action in enumerate(writes):
            if count == crash_after:
                self.forget()
                return
            self.do(action)
        if crash_after is not None:
            self.forget()
            return
        if any(isinstance(action, RemoveFinalizer) for action in decision.actions):
            assert not self.marked, "the owner mark is left behind"
            self.gone = True
            return
        assert (decision.status.step or 0) >= (self.status.step or 0), "the step went down"
        self.status = decision.status

    def forget(self) -> None:
        """A restarted operator knows what the cluster knows, and nothing else."""
        self.progress, self.storage = None, StorageSeen()

    def do(self, action: Any) -> None:
        match action:
            case AddFinalizer():
                self.run = replace(self.run, has_finalizer=True)
            case CreatePod():
                self.create(action)
            case DeletePod(uid=uid):
                self.change(uid, deleting=True)
            case ReleasePod(uid=uid):
                self.change(uid, has_finalizer=False)
            case StartJob(job):
                self.answer(job)

    def create(self, create: CreatePod) -> None:
        if create.attempt in self.pods:
            return  # 409: ours already
        assert self.run.has_finalizer, "a pod was made for a run that is not held"
        assert self.run.deleting_since is None
        assert self.marked, "an attempt that finds no owner mark cannot begin"
        for pod in self.pods.values():
            node = self.nodes.get(pod.node or "")
            assert pod.is_over or node is None or not node.ready, f"a second live attempt beside {pod}"
        number = create.attempt
        self.progress = None if self.progress is None or self.progress.attempt != number else self.progress
        self.storage = replace(self.storage, artifact=None)
        self.pods[number] = PodSeen(
            name=f"timber-{number}",
            uid=f"pod-{number}",
            attempt=number,
            pool=create.pool,
            phase="Pending",
            created=self.now,
            has_finalizer=True,
            capacity_type="Spot",
            price_per_hour="0.3",
        )

    def change(self, uid: str, **changes: Any) -> None:
        for number, pod in self.pods.items():
            if pod.uid == uid:
                self.pods[number] = replace(pod, **changes)

    def answer(self, job: Job) -> None:
        match job:
            case Job.CHECK:
                self.storage = replace(
                    self.storage, checked=StorageChecked(True, "Ready", "it can be written", self.now)
                )
            case Job.MARK:
                self.marked = True
                self.storage = replace(self.storage, marked=Tidied(True, "", "", self.now))
            case Job.VERIFY:
                found = ArtifactStatus(uri="s3://loras/a/", file="x", sha256=ZERO, size=1) if self.artifact else None
                self.storage = replace(
                    self.storage,
                    artifact=ArtifactChecked(
                        found is not None, True, "ArtifactMissing", "the answer", self.now, STEPS, found
                    ),
                )
            case Job.PRUNE:
                self.storage = replace(self.storage, pruned=Tidied(True, "", "", self.now))
            case Job.READ:
                newest = CheckpointEntry(attempt=1, step=self.durable, manifest_sha256=ZERO) if self.durable else None
                self.storage = replace(self.storage, newest=newest, read=self.now)
            case Job.BURY:
                self.fence = 10**9
                self.storage = replace(self.storage, buried=Tidied(True, "", "", self.now))
            case Job.COLLECT:
                for pod in self.pods.values():
                    node = self.nodes.get(pod.node or "")
                    assert pod.is_over or node is None or not node.ready, "collected under a living trainer"
                self.marked = False
                self.storage = replace(self.storage, collected=Tidied(True, "", "0 objects deleted", self.now))

    def end(self, pod: PodSeen, exit_code: int | None, **changes: Any) -> None:
        phase = "Succeeded" if exit_code == 0 else "Failed"
        self.pods[pod.attempt] = replace(pod, phase=phase, exit_code=exit_code, ended=self.now, **changes)

    def sweep_pods(self) -> None:
        """The API server drops pods that are deleted, over and held by nobody."""
        for number, pod in list(self.pods.items()):
            if pod.deleting and not pod.has_finalizer and pod.is_over:
                del self.pods[number]


RESTS = {"Succeeded", "Failed", "Suspended"}
"""What waits for the user alone."""
EVENT_DRIVEN = {"Held", "Released", "Collected", "Verifying", "ArtifactMissing", "Suspending", "EmptyDataset"}
"""What waits for an answer that wakes the run: a write of our own, a job, the end of a pod."""


class Lives(RuleBasedStateMachine):
    """One run and all that may befall it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize()
    def apply(self) -> None:
        self.world.nodes["node-1"] = NodeSeen("node-1", ready=True)
        for _ in range(3):
            self.world.operate()
        self.schedule(1)

    @rule(passes=st.integers(1, 4))
    def operate(self, passes: int) -> None:
        for _ in range(passes):
            self.world.operate()

    @rule(after=st.integers(0, 3))
    def operator_crashes(self, after: int) -> None:
        self.world.operate(crash_after=after)

    @rule(seconds=st.sampled_from([0.5, 3, 12, 35, 130]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.sweep_pods()

    def living(self) -> list[PodSeen]:
        return [pod for pod in self.world.pods.values() if not pod.is_over]

    @rule(node=st.integers(1, 3))
    def schedule(self, node: int) -> None:
        name = f"node-{node}"
        if name not in self.world.nodes or not self.world.nodes[name].ready:
            self.world.nodes[name] = NodeSeen(name, ready=True)
        for pod in self.living():
            if pod.node is None:
                self.world.pods[pod.attempt] = replace(pod, node=name, phase="Running", started=self.world.now)

    @rule(steps=st.integers(1, 8), heard=st.booleans())
    def train(self, steps: int, heard: bool) -> None:
        world = self.world
        for pod in self.living():
            if pod.node is None or pod.attempt < world.fence:
                continue
            world.fence = pod.attempt
            step = min(STEPS, world.steps.get(pod.attempt, world.durable) + steps)
            world.steps[pod.attempt] = step
            world.durable = max(world.durable, step - step % EVERY)
            if heard:
                known = (
                    world.progress
                    if world.progress and world.progress.attempt == pod.attempt
                    else Progress(pod.attempt)
                )
                entry = CheckpointEntry(attempt=pod.attempt, step=world.durable, manifest_sha256=ZERO)
                world.progress = replace(
                    known,
                    sequence=known.sequence + 1,
                    step=step,
                    phase=Phase.TRAINING,
                    heard=world.now,
                    checkpoint=entry if world.durable else None,
                )
            if step == STEPS and not pod.deleting:
                world.artifact = True
                world.end(pod, 0)

    @rule(save=st.booleans(), mark=st.sampled_from(["EvictionByEvictionAPI", "", "DeletionByTaintManager"]))
    def preempt(self, save: bool, mark: str) -> None:
        for pod in self.living():
            if pod.node is None:
                continue
            if save and pod.attempt >= self.world.fence:
                self.world.durable = self.world.steps.get(pod.attempt, self.world.durable)
            words = Termination(exit_code=75, step=self.world.durable, durable_step=self.world.durable, saved=Saved.NEW)
            code, last = (75, words) if save else (137, None)
            self.world.end(pod, code, deleting=bool(mark), disruption=mark, termination=last)

    @rule()
    def lose_node(self) -> None:
        for pod in self.living():
            if pod.node in self.world.nodes:
                node = self.world.nodes[pod.node]
                self.world.nodes[pod.node] = replace(node, ready=False, not_ready_since=self.world.now)

    @rule()
    def heal_nodes(self) -> None:
        for name, node in list(self.world.nodes.items()):
            self.world.nodes[name] = replace(node, ready=True, not_ready_since=None)
        for pod in self.living():
            if pod.deleting:  # the kubelet is back and does what it was told
                self.world.end(pod, 76 if pod.attempt < self.world.fence else 75)

    @rule()
    def delete_node_object(self) -> None:
        for pod in self.living():
            if pod.node and self.world.nodes.pop(pod.node, None) is not None:
                self.world.end(pod, None, disruption="DeletionByPodGC", deleting=True)

    @rule(on=st.booleans())
    def suspend(self, on: bool) -> None:
        self.world.suspended = on

    @precondition(lambda self: self.world.run.deleting_since is None)
    @rule()
    def user_deletes_pod(self) -> None:
        for pod in self.living():
            self.world.pods[pod.attempt] = replace(pod, deleting=True)

    @precondition(lambda self: self.world.run.has_finalizer)
    @rule()
    def user_deletes_run(self) -> None:
        if self.world.run.deleting_since is None:
            self.world.run = replace(self.world.run, deleting_since=self.world.now)

    @invariant()
    def attempts_are_numbered_once(self) -> None:
        numbers = [entry.number for entry in self.world.status.attempts]
        assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        """The faults are over: whatever happened, the run comes to a good end."""
        world = self.world
        world.suspended = False
        for _ in range(60):
            self.heal_nodes()
            world.operate()
            self.schedule(1)
            for pod in self.living():
                if pod.deleting:
                    world.end(pod, 75)
            self.train(STEPS, True)
            world.now += 40
            world.sweep_pods()
            if world.gone:
                break
        assert not [pod for pod in world.pods.values() if pod.has_finalizer], "a pod was left held"
        if world.run.deleting_since is not None:
            assert world.gone, world.last
        else:
            assert world.status.phase == "Succeeded", world.last
            assert world.status.step == STEPS
            assert world.status.checkpoint is None, "its folder is gone"


Lives.TestCase.settings = settings(
    max_examples=400, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLives = Lives.TestCase
