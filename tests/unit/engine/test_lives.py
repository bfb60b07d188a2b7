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
from lorafinetune.engine.fleet import Fact, Fleet, News, learn
from lorafinetune.engine.news import fold, recall
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

STEPS = 100
POOLS = {
    "spot": pool("0.3"),
    "other": pool("0.4"),
    "sure": pool("1.2", capacity="OnDemand", default=False),
}
PLACEMENT = {"pools": ["spot", "other"], "onDemand": {"pools": ["sure"], "afterPreemptions": 1}}
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
    limits: dict[str, Any] = field(default_factory=dict)
    publishing: set[int] = field(default_factory=set)
    gone: bool = False
    fence: int = 0
    durable: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    artifact: int | None = None
    """Of which step it is."""
    marked: bool = False
    last: Decision | None = None
    fleet: Fleet = field(default_factory=dict)
    dry: set[str] = field(default_factory=set)
    """Pools that give no node now."""
    avoided: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def observe(self) -> Observation:
        return Observation(
            run=self.run,
            spec=spec(training={"steps": STEPS}, suspend=self.suspended, placement=PLACEMENT, limits=self.limits),
            status=self.status,
            pods=tuple(self.pods[number] for number in sorted(self.pods)),
            nodes=dict(self.nodes),
            pools=POOLS,
            fleet={name: replace(known, waiting=self.waiting(name)) for name, known in self.fleet.items()},
            now=self.now,
            progress=self.progress,
            storage=self.storage,
        )

    def waiting(self, name: str) -> int:
        """Attempts in that pool that have no node."""
        return sum(pod.pool == name and pod.node is None and not pod.is_over for pod in self.pods.values())

    def operate(self, crash_after: int | None = None) -> None:
        """One pass of the operator, which dies before its *crash_after*-th write."""
        if self.gone:
            return
        decision = self.last = decide(self.observe())
        assert decision.message, decision
        ended = decision.status.phase == "Failed"
        assert ended or decision.next_look is not None or decision.reason in RESTS | EVENT_DRIVEN, decision
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
        self.fleet = fold(self.fleet, self.status, decision.status, self.now)
        self.status = decision.status

    def forget(self) -> None:
        """A restarted operator knows what the cluster knows, and nothing else."""
        self.progress, self.storage = None, StorageSeen()
        self.fleet = recall([self.status], self.now)

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
            case StartJob(job, steps):
                self.answer(job, steps)

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
        self.avoided[number] = create.avoid_nodes
        if create.publish:
            assert self.last is not None
            assert self.last.status.checkpoint is not None, "there is nothing to publish"
            self.publishing.add(number)
        else:
            assert self.status.limit is None, "no more is trained"
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
            capacity_type=create.pool_spec.capacity_type.value,
            price_per_hour=create.pool_spec.price_per_hour,
            avoids=bool(create.avoid_nodes),
        )

    def change(self, uid: str, **changes: Any) -> None:
        for number, pod in self.pods.items():
            if pod.uid == uid:
                self.pods[number] = replace(pod, **changes)

    def answer(self, job: Job, steps: int | None = None) -> None:
        match job:
            case Job.CHECK:
                self.storage = replace(
                    self.storage, checked=StorageChecked(True, "Ready", "it can be written", self.now)
                )
            case Job.MARK:
                self.marked = True
                self.storage = replace(self.storage, marked=Tidied(True, "", "", self.now))
            case Job.VERIFY:
                wanted, made = steps or STEPS, self.artifact or 0
                found = ArtifactStatus(uri="s3://a/", file="x", sha256=ZERO, size=1) if made >= wanted else None
                answer = ArtifactChecked(
                    found is not None, True, "ArtifactMissing", "the answer", self.now, wanted, found, made
                )
                self.storage = replace(self.storage, artifact=answer)
            case Job.PRUNE:
                self.storage = replace(self.storage, pruned=Tidied(True, "", "", self.now))
            case Job.READ:
                newest = self.entry(1, self.durable) if self.durable else None
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

    def entry(self, attempt: int, step: int) -> CheckpointEntry:
        return CheckpointEntry(attempt=attempt, step=step, manifest_sha256=ZERO)

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

    @initialize(begins=st.sampled_from(["new", "waits", "on demand"]))
    def apply(self, begins: str) -> None:
        self.world.nodes["node-1"] = NodeSeen("node-1", ready=True)
        for _ in range(8):
            self.world.operate()
        if begins == "waits":
            self.world.dry = {"spot"}
            self.signs_are_seen("no_scale_up")
            self.time_passes(12)
        self.schedule(1)
        if begins == "on demand":
            self.train(EVERY, True)
            self.time_passes(35)
            self.preempt(True, "EvictionByEvictionAPI")
            for _ in range(3):
                self.world.operate()
            self.schedule(2)
            self.train(EVERY, True)

    @rule(passes=st.integers(1, 4))
    def operate(self, passes: int) -> None:
        for _ in range(passes):
            self.world.operate()

    @rule(after=st.integers(0, 3))
    def operator_crashes(self, after: int) -> None:
        self.world.operate(crash_after=after)

    @rule(seconds=st.sampled_from([0.5, 3, 12, 35, 130, 700]))
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
            if pod.node is None and pod.pool not in self.world.dry and name not in self.world.avoided[pod.attempt]:
                self.world.pods[pod.attempt] = replace(
                    pod, node=name, phase="Running", started=self.world.now, no_scale_up="", scale_up_since=None
                )

    @rule(names=st.sets(st.sampled_from(sorted(POOLS))))
    def pools_run_dry(self, names: set[str]) -> None:
        self.world.dry = names

    @rule(name=st.sampled_from(sorted(POOLS)))
    def another_run_is_placed(self, name: str) -> None:
        if name not in self.world.dry:
            self.world.fleet = learn(self.world.fleet, [Fact(self.world.now, name, News.PLACED)])
            self.world.operate()

    @rule(sign=st.sampled_from(["no_scale_up", "insufficient_capacity", "scale_up_since", "unschedulable"]))
    def signs_are_seen(self, sign: str) -> None:
        for pod in self.living():
            if pod.node is None and pod.pool in self.world.dry:
                value: Any = self.world.now if sign == "scale_up_since" else "there is none"
                self.world.pods[pod.attempt] = replace(pod, **{sign: value})

    @rule(steps=st.integers(1, 8), heard=st.booleans())
    def train(self, steps: int, heard: bool) -> None:
        world = self.world
        for pod in self.living():
            if pod.node is None or pod.attempt < world.fence:
                continue
            world.fence = pod.attempt
            if pod.attempt in world.publishing:
                if not pod.deleting:
                    world.artifact = world.durable
                    world.end(pod, 0)
                continue
            step = min(STEPS, world.steps.get(pod.attempt, world.durable) + steps)
            world.steps[pod.attempt] = step
            world.durable = max(world.durable, step - step % EVERY)
            if heard:
                known = (
                    world.progress
                    if world.progress and world.progress.attempt == pod.attempt
                    else Progress(pod.attempt)
                )
                entry = world.entry(pod.attempt, world.durable)
                world.progress = replace(
                    known,
                    sequence=known.sequence + 1,
                    step=step,
                    phase=Phase.TRAINING,
                    heard=world.now,
                    seconds_per_step=900.0,
                    checkpoint=entry if world.durable else None,
                )
            if step == STEPS and not pod.deleting:
                world.artifact = STEPS
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

    @precondition(lambda self: not self.world.limits)
    @rule(
        limit=st.sampled_from([
            {"maxDuration": "1m"}, {"maxDuration": "5m"}, {"maxCost": "0.003"}, {"attempts": {"preemptions": 1}},
            {"attempts": {"withoutProgress": 3}},
        ]),
        at_limit=st.sampled_from(["Fail", "Publish"]),
    )  # fmt: skip
    def user_sets_a_limit(self, limit: dict[str, Any], at_limit: str) -> None:
        self.world.limits = {"atLimit": at_limit, **limit}

    @precondition(lambda self: self.world.run.deleting_since is None)
    @rule()
    def user_deletes_pod(self) -> None:
        for pod in self.living():
            self.world.pods[pod.attempt] = replace(pod, deleting=True)

    @precondition(lambda self: self.world.run.has_finalizer)
    @rule(meant=st.integers(0, 4))
    def user_deletes_run(self, meant: int) -> None:
        if meant == 0 and self.world.run.deleting_since is None:
            self.world.run = replace(self.world.run, deleting_since=self.world.now)

    @invariant()
    def attempts_are_numbered_once(self) -> None:
        numbers = [entry.number for entry in self.world.status.attempts]
        assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        """The faults are over: whatever happened, the run comes to a good end."""
        world = self.world
        world.suspended = False
        world.dry = set()
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
        elif world.status.phase == "Failed":
            self.ended_at_its_limit()
        else:
            assert world.status.phase == "Succeeded", world.last
            assert world.status.step == STEPS
            assert world.status.checkpoint is None, "its folder is gone"

    def ended_at_its_limit(self) -> None:
        """Nothing but a limit ends a run here, and what there is has been published if that was asked for."""
        world, status = self.world, self.world.status
        assert world.limits, world.last
        assert not self.living(), "an attempt lives on"
        assert status.completion_time is not None
        if world.limits["atLimit"] == "Publish" and world.durable:
            assert status.artifact is not None, world.last
            assert world.artifact == world.durable
        else:
            assert status.artifact is None


Lives.TestCase.settings = settings(
    max_examples=400, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLives = Lives.TestCase
