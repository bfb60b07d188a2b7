"""The world around the real engine, in virtual time: what the operator does is real, what it does it to is simulated.

The operator's part is one pass: observe, `decide`, carry out, look again when the decision says so. Looks that only
keep cost and ETA fresh (`Decision.refresh`) are left out, for nothing hangs on them. A pass takes no time, the bucket
answers at once, Kubernetes events are known when they are made, and a zone that loses its capacity loses all its nodes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from lorafinetune.contract.event import Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.engine.decision import (
    Action,
    AddFinalizer,
    CreatePod,
    DeletePod,
    ReleasePod,
    StartJob,
)
from lorafinetune.engine.observation import ClusterSeen, Observation, PodSeen
from lorafinetune.engine.rules import decide
from lorafinetune.simulate import account
from lorafinetune.simulate.agenda import Agenda
from lorafinetune.simulate.attempt import KILLED, Attempt
from lorafinetune.simulate.census import Census
from lorafinetune.simulate.circles import Circles, WorldError
from lorafinetune.simulate.life import Life
from lorafinetune.simulate.nodes import Nodes
from lorafinetune.simulate.places import Place, Platform, Zone
from lorafinetune.simulate.training import Training, rhythm

START: Final = 1_700_000_000.0
"""The instant at which every simulation begins, Unix seconds: results depend on nothing but what is given."""
GRACE: Final = 60.0
"""Seconds that a pod gets from its deletion on, as the operator asks for."""
SILENCE: Final = 50.0
"""Seconds until a node that went without a word is marked NotReady, as the control plane does by default."""
FORGOTTEN: Final = 300.0
"""Seconds until the object of such a node is deleted, and its pods with it."""
IDLE: Final = 600.0
"""Seconds until the autoscaler takes away a node without pods."""
DAY: Final = 86_400.0
NO_NODE: Final = "0/0 nodes are available"
"""What the scheduler says of a pod whose node is still to be made."""


class World:
    """Runs, pods, nodes and zones between two instants."""

    def __init__(self, places: Sequence[Place], platform: Platform) -> None:
        self.platform = platform
        self.places = {place.name: place for place in places}
        self.agenda = Agenda(START)
        self.lives: list[Life] = []
        self.census = Census()
        self._pools = {place.name: place.spec for place in places}
        self._nodes = Nodes()
        self._on: dict[str, dict[str, tuple[Life, Attempt]]] = defaultdict(dict)
        """By zone: the attempts that have, or are getting, a node there, by their pod's UID."""
        self._waiting: dict[str, tuple[Life, Attempt]] = {}
        """The attempts without a node that is there or coming, by their pod's UID, oldest first."""
        self._full: dict[str, Life] = {}
        """Runs that wait for room in a pool, the first to come first."""
        self._living = 0
        """Runs that have not ended."""
        self._circles = Circles()
        for zone in {zone.name: zone for place in places for zone in place.zones}.values():
            self._next_change(zone)

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self.agenda.now

    def apply(self, life: Life) -> None:
        """Take a run in, at the instant at which it is created."""
        self.lives.append(life)
        self._living += 1
        self.agenda.at(life.about.created, lambda: self._wake(life))

    def run(self, until: float, tell: Callable[[float], None] | None = None) -> None:
        """Live on to *until* (Unix seconds), or until every run has ended; *tell* hears of each day that passed."""
        day = self.now
        while self.agenda.step(until) and self._living:
            if tell is not None and self.now - day >= DAY:
                day = self.now
                tell(day)
        for life in self.lives:
            for attempt in life.attempts.values():
                if attempt.is_alive:
                    attempt.end(self.now, self._durable(attempt), None, None)
                    life.account.book(attempt, account.RUNNING)

    # The operator

    def _wake(self, life: Life, after: float = 0.0) -> None:
        """Have the run looked at in *after* seconds at the latest."""
        if life.look is not None and life.look.act is not None:
            if life.look.at <= self.now + after:
                return
            life.look.call_off()
        life.look = self.agenda.after(after, lambda: self._look(life))

    def _look(self, life: Life) -> None:
        """One pass: observe, decide, act."""
        life.looks += 1
        decision = decide(self._observe(life))
        self._circles.watch(life.about.name, self.now - START, decision.reason)
        for action in decision.actions:
            self._do(life, action)
        self.census.learn(life.status, decision.status, self.now)
        life.status = decision.status
        self._queue(life, decision.reason)
        if life.ended is None and life.status.phase in ("Succeeded", "Failed"):
            life.ended = self.now
            self._living -= 1
        if decision.actions:
            self._wake(life)
        elif decision.look_again is not None and math.isfinite(decision.look_again):
            self._wake(life, decision.look_again)

    def _observe(self, life: Life) -> Observation:
        pods = tuple(life.attempts[number].pod for number in sorted(life.attempts))
        bound = [pod.node for pod in pods if pod.node is not None]
        return Observation(
            run=life.about,
            spec=life.spec,
            status=life.status,
            pods=pods,
            nodes=self._nodes.among(bound),
            pools=self._pools,
            now=self.now,
            progress=life.spoken.told(self.now) if life.spoken is not None else None,
            storage=life.storage,
            cluster=ClusterSeen(START, len(self._nodes), self._nodes.silent),
            fleet=self.census.fleet,
        )

    def _queue(self, life: Life, reason: str) -> None:
        if reason == "PoolFull":
            self._full.setdefault(life.about.uid, life)
        else:
            self._full.pop(life.about.uid, None)

    def _counted(self, attempt: Attempt) -> None:
        """Count a pod anew that has changed; if it gave up its place in its pool, who waits longest looks at once."""
        if not self.census.count(attempt.pod):
            return
        for life in self._full.values():
            placement = life.spec.placement
            others = placement.on_demand.pools if placement.on_demand is not None else ()
            if attempt.pod.pool in (*(placement.pools or self._pools), *others):
                self._wake(life)
                return

    def _do(self, life: Life, action: Action) -> None:
        match action:
            case AddFinalizer():
                life.about = replace(life.about, has_finalizer=True)
            case CreatePod():
                self._create(life, action)
            case DeletePod(uid=uid) if (attempt := self._attempt(life, uid)) is not None:
                self._delete(life, attempt)
            case ReleasePod(uid=uid) if (attempt := self._attempt(life, uid)) is not None:
                attempt.change(has_finalizer=False)
                self._sweep(life, attempt)
            case StartJob(job, steps):
                life.answer(job, steps, self.now)
            case _:
                pass  # a pod that is gone already; a run is never let go

    def _attempt(self, life: Life, uid: str) -> Attempt | None:
        return next((one for one in life.attempts.values() if one.pod.uid == uid), None)

    # Pods

    def _create(self, life: Life, create: CreatePod) -> None:
        if create.attempt in life.attempts:
            raise WorldError(f"{life.about.name}: attempt {create.attempt} is made twice")
        place = self.places[create.pool]
        pod = PodSeen(
            name=f"{life.about.name}-{create.attempt}",
            uid=f"{life.about.uid}-{create.attempt}",
            attempt=create.attempt,
            pool=create.pool,
            phase="Pending",
            created=self.now,
            has_finalizer=True,
            events_read=math.inf,  # what its Kubernetes events tell is known as soon as it is so: nobody need ask
            capacity_type=place.spec.capacity_type.value,
            price_per_hour=create.pool_spec.price_per_hour,
            on_demand_price_per_hour=create.on_demand_price_per_hour or "",
        )
        beat = rhythm(life.effort, life.spec.checkpoint.every_steps, create.lifetime_seconds)
        attempt = Attempt(pod, place, beat, publishing=create.publish)
        life.attempts[create.attempt] = attempt
        self._counted(attempt)
        self._seek(life, attempt)

    def _seek(self, life: Life, attempt: Attempt) -> None:
        """A pod without a node: one is made where there is room, else it waits."""
        uid = attempt.pod.uid
        for zone in attempt.place.zones:
            if zone.has_room(self.now - START):
                zone.nodes.add(uid)
                attempt.zone = zone
                self._on[zone.name][uid] = (life, attempt)
                self._waiting.pop(uid, None)
                if attempt.told_dry is not None:
                    attempt.told_dry.call_off()
                    attempt.told_dry = None
                attempt.change(scale_up_since=self.now, unschedulable=NO_NODE, insufficient_capacity="")
                attempt.arrival = self.agenda.after(self.platform.provisioning, lambda: self._arrive(life, attempt))
                return
        self._waiting[uid] = (life, attempt)
        attempt.change(scale_up_since=None, unschedulable=NO_NODE)
        if self.platform.tells_dry is not None and attempt.told_dry is None:
            attempt.told_dry = self.agenda.after(self.platform.tells_dry, lambda: self._tell_dry(life, attempt))

    def _tell_dry(self, life: Life, attempt: Attempt) -> None:
        attempt.change(insufficient_capacity=f"no capacity in {', '.join(zone.name for zone in attempt.place.zones)}")
        self._wake(life)

    def _arrive(self, life: Life, attempt: Attempt) -> None:
        """The node is there: the pod is bound, and its container starts."""
        zone = attempt.zone
        assert zone is not None, "a node comes from somewhere"
        others = [one.pod.name for one in life.attempts.values() if one.is_alive]
        if others:
            raise WorldError(f"{attempt.pod.name} starts while {', '.join(others)} is alive")
        node = f"{zone.name}-{attempt.pod.name}"
        self._nodes.add(node)
        attempt.arrival = None
        attempt.change(
            node=node, bound=self.now, started=self.now, phase="Running", unschedulable="", scale_up_since=None
        )
        self._counted(attempt)
        since = life.head.step if life.head is not None else 0
        steps = since if attempt.publishing else life.steps
        attempt.training = Training(life.effort, attempt.rhythm, self.now, since, steps)
        attempt.next_word = self.agenda.at(attempt.training.began, lambda: self._speak(life, attempt))
        self._wake(life)

    def _speak(self, life: Life, attempt: Attempt) -> None:
        """Something that may matter has happened in the trainer: it began, committed, or is done."""
        training = attempt.training
        assert training is not None, "who speaks has started"
        life.spoken = attempt
        durable = training.durable(self.now)
        if durable > training.from_step:
            self._commit(life, attempt, durable)
        if self.now >= training.finished:
            life.artifact = training.steps
            self._end(life, attempt, training.steps, Saved.DURABLE, ExitCode.FINISHED, cause=account.FINISHED)
            return
        due = min(training.next_durable(self.now) or training.finished, training.finished)
        attempt.next_word = self.agenda.at(due, lambda: self._speak(life, attempt))
        self._wake(life)

    def _commit(self, life: Life, attempt: Attempt, step: int) -> None:
        if life.head is None or step > life.head.step:
            life.head = attempt.entry(step)

    def _delete(self, life: Life, attempt: Attempt) -> None:
        """The API server takes a deletion: what has no node is over, what has one is asked to stop."""
        if not attempt.pod.deleting:
            attempt.change(deleting=True)
            if attempt.pod.node is None:
                self._leave(attempt)
                life.account.book(attempt, account.NEVER_STARTED)
            elif attempt.is_alive:
                self._ask_to_stop(life, attempt)
        self._sweep(life, attempt)

    def _ask_to_stop(self, life: Life, attempt: Attempt) -> None:
        """SIGTERM: the trainer saves what it has, and ends."""
        training = attempt.training
        assert training is not None, "it has started"
        if attempt.publishing or self.now >= training.trained:
            return  # it is publishing, which is the saving
        step, durable = training.step(self.now), training.durable(self.now)
        attempt.stopped = self.now
        if attempt.next_word is not None:
            attempt.next_word.call_off()
        if step <= durable:
            saved = Saved.DURABLE if durable > 0 else Saved.NONE
            self._end(life, attempt, durable, saved, ExitCode.YIELDED, cause=self._why(attempt))
            return
        needed = life.effort.save + life.effort.upload
        attempt.saving = self.agenda.after(needed, lambda: self._saved(life, attempt, step))
        self.agenda.after(GRACE, lambda: self._kill(life, attempt))

    def _saved(self, life: Life, attempt: Attempt, step: int) -> None:
        self._end(life, attempt, step, Saved.NEW, ExitCode.YIELDED, cause=self._why(attempt))

    def _kill(self, life: Life, attempt: Attempt) -> None:
        if attempt.is_alive:
            self._end(life, attempt, self._durable(attempt), None, KILLED, cause=self._why(attempt))

    def _why(self, attempt: Attempt) -> str:
        return account.TAKEN if attempt.notice is not None else account.STOPPED

    def _durable(self, attempt: Attempt) -> int:
        assert attempt.training is not None, "it has started"
        return attempt.training.durable(attempt.stopped if attempt.stopped is not None else self.now)

    def _end(
        self, life: Life, attempt: Attempt, kept: int, saved: Saved | None, code: int | None, *, cause: str
    ) -> None:
        """The process of an attempt ends."""
        if attempt.training is not None and kept > attempt.training.from_step:
            self._commit(life, attempt, kept)
        attempt.end(self.now, kept, saved, code)
        life.account.book(attempt, cause)
        self._leave(attempt)
        node = attempt.pod.node
        if code is not None and attempt.notice is None and node is not None:
            self.agenda.after(IDLE, lambda: self._nodes.forget(node))
        self._sweep(life, attempt)
        self._wake(life)

    def _leave(self, attempt: Attempt) -> None:
        """Its machine, or its place in the queue for one, is free for others."""
        uid, zone = attempt.pod.uid, attempt.zone
        self._waiting.pop(uid, None)
        for date in (attempt.arrival, attempt.told_dry):
            if date is not None:
                date.call_off()
        if zone is not None and self._on[zone.name].pop(uid, None) is not None:
            zone.nodes.discard(uid)
            if zone.machines is not None:
                self._serve(zone)

    def _sweep(self, life: Life, attempt: Attempt) -> None:
        """The API server drops a pod that is deleted, over and held by nobody."""
        self._counted(attempt)
        pod = attempt.pod
        if pod.deleting and pod.is_over and not pod.has_finalizer and life.attempts.pop(pod.attempt, None) is not None:
            self._wake(life)

    # Zones

    def _next_change(self, zone: Zone) -> None:
        due = zone.trace.next_change(self.now - START) if zone.trace is not None else None
        if due is not None:
            self.agenda.at(START + due, lambda: self._changed(zone))

    def _changed(self, zone: Zone) -> None:
        assert zone.trace is not None, "only traces change"
        if zone.trace.available(self.now - START):
            self._serve(zone)
        else:
            for life, attempt in list(self._on[zone.name].values()):
                self._take(life, attempt)
        self._next_change(zone)

    def _serve(self, zone: Zone) -> None:
        """The zone has room: who waited longest comes first."""
        for life, attempt in list(self._waiting.values()):
            if not zone.has_room(self.now - START):
                return
            if zone in attempt.place.zones:
                self._seek(life, attempt)
                self._wake(life)

    def _take(self, life: Life, attempt: Attempt) -> None:
        """The platform takes a node back, or gives up making one."""
        self._wake(life)
        if not attempt.is_alive:
            self._leave(attempt)
            attempt.zone = None
            if attempt.pod.node is None:
                self._seek(life, attempt)
            return
        node = attempt.pod.node
        assert node is not None, "what lives has a node"
        if self.platform.notice > 0:
            if attempt.notice is None:
                self._nodes.mark(node)
                attempt.notice = self.agenda.after(self.platform.notice, lambda: self._gone(life, attempt, node))
            return
        self._end(life, attempt, self._durable(attempt), None, None, cause=account.TAKEN_SILENTLY)
        self.agenda.after(SILENCE, lambda: self._not_ready(life, node))
        self.agenda.after(FORGOTTEN, lambda: self._gone(life, attempt, node))

    def _not_ready(self, life: Life, node: str) -> None:
        self._nodes.fall_silent(node, self.now)
        self._wake(life)

    def _gone(self, life: Life, attempt: Attempt, node: str) -> None:
        """A node is no more, and what was left on it is deleted."""
        self._nodes.forget(node)
        self._kill(life, attempt)
        if not attempt.pod.is_over:
            attempt.change(phase="Failed", ended=self.now)
        attempt.change(deleting=True, disruption=attempt.pod.disruption or "DeletionByPodGC")
        self._sweep(life, attempt)
        self._wake(life)
