"""100,000 events through the real receiver, loop and engine: what people see of a run's progress never goes down.

Duplicated, reordered, replayed, of older attempts, of other runs and pods, with leaping and absurd numbers; the
operator is restarted in between, and knows then only what it has written. Only HTTP itself and the cluster are played.
"""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final, cast

from aiohttp import web

from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.contract.event import AUDIENCE
from lorafinetune.contract.training import MAX_STEPS
from lorafinetune.engine.observation import Observation, StorageSeen
from lorafinetune.engine.rules import decide
from lorafinetune.jobs import Jobs
from lorafinetune.kube import pods, seen, status
from lorafinetune.kube.client import Cluster
from lorafinetune.kube.store import Store
from lorafinetune.kube.stores import NamespacedStore, Stores
from lorafinetune.loop import Loop
from lorafinetune.ratelimit import RateLimit
from lorafinetune.receiver.authenticate import Authenticator, Identity
from lorafinetune.receiver.judge import Judge
from lorafinetune.receiver.verdict import Result
from lorafinetune.telemetry import Metrics
from tests.unit.engine.given import NOW, READY, spec

EVENTS: Final = 100_000
ATTEMPTS: Final = 25
"""More than the status lists: what the oldest have done must not be forgotten with them."""
STEPS: Final = 500
ENDLESS: Final = RateLimit(1e9, 10**9)
RUN: Final = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"
OTHER: Final = "ffffffff-4f50-6172-8394-a5b6c7d8e9f0"


def token(pod: str) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"Bearer {part({})}.{part({'sub': pod, 'aud': [AUDIENCE], 'exp': int(NOW) + 10**9})}.c2ln"


TOKENS: Final = {pod: token(pod) for pod in [*(f"pod-{number}" for number in range(1, ATTEMPTS + 2)), "stranger"]}
POD_OF: Final = {words.removeprefix("Bearer "): pod for pod, words in TOKENS.items()}


class Body:
    """A request's body, which comes in one piece."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self.content


class Request:
    """What the judge looks at of an HTTP request."""

    content_type = "application/json"
    remote = "10.0.0.1"

    def __init__(self, body: bytes, pod: str) -> None:
        self.headers = {"Authorization": TOKENS[pod]}
        self.content_length = len(body)
        self.content = Body(body)


class NoBucket:
    """A bucket that was found good, and is asked nothing."""

    def seen(self, _uid: str) -> StorageSeen:
        return READY


class Operator:
    """The receiver, the loop and the engine over stores that the test fills; :meth:`restart` makes them anew."""

    def __init__(self) -> None:
        self.version = 10
        self.now = NOW
        self.runs = Store(index=lambda run: [run["metadata"]["uid"]])
        self.pods = Store(index=lambda pod: [pod["metadata"]["labels"][seen.LABEL_RUN_UID]])
        self.nodes = Store()
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        self.nodes.take("ADDED", {"metadata": {"name": "node-a", "resourceVersion": "1"}, "status": ready})
        for uid, name in ((RUN, "timber"), (OTHER, "other")):
            self.put_run(uid, name, {})
        self.restart()

    def restart(self) -> None:
        """Forget all that is only in memory."""
        stores = Stores(self.runs, NamespacedStore({None: self.pods}), self.nodes, Store())
        self.loop = Loop(
            cast(Cluster, None),
            stores,
            pods.Trainer(image="x"),
            witness=cast(Any, None),
            metrics=Metrics(),
            make_jobs=lambda _wake: cast(Jobs, NoBucket()),
            clock=lambda: self.now,
            collect_timeout=900.0,
        )
        self.judge = Judge(
            review=self._review,
            current=self.loop.current,
            deliver=self.loop.deliver,
            ready=lambda: True,
            pods=ENDLESS,
            namespaces=ENDLESS,
            authenticator=Authenticator(self._review, clock=lambda: self.now, addresses=ENDLESS, total=ENDLESS),
        )

    async def _review(self, words: str) -> Identity | None:
        pod = POD_OF.get(words)
        return Identity("default", "default", pod, pod) if pod is not None else None

    def put_run(self, uid: str, name: str, told: dict[str, Any]) -> None:
        self.version += 1
        metadata = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(self.version)}
        more = {"creationTimestamp": "2026-11-23T08:00:00Z", "generation": 1, "finalizers": [seen.RUN_FINALIZER]}
        body = spec(training={"steps": STEPS}).to_json()
        self.runs.take("MODIFIED", {"metadata": metadata | more, "spec": body, "status": told})

    def put_pod(self, number: int, *, over: bool = False) -> None:
        self.version += 1
        labels = {seen.LABEL_RUN_UID: RUN, seen.LABEL_ATTEMPT: str(number), seen.LABEL_POOL: "spot"}
        about = {"name": f"timber-{RUN[:5]}-{number}", "namespace": "default", "uid": f"pod-{number}"}
        metadata = about | {"labels": labels, "resourceVersion": str(self.version)}
        metadata |= {"creationTimestamp": "2027-01-15T08:00:00Z", "finalizers": [seen.POD_FINALIZER]}
        metadata |= {"ownerReferences": [{"uid": RUN, "controller": True}]}
        state: dict[str, Any] = {"running": {"startedAt": "2027-01-15T08:00:00Z"}}
        conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}] if over else []
        if over:
            state = {"terminated": {"exitCode": 137, "finishedAt": "2027-01-15T08:00:00Z"}}
        told = {
            "phase": "Failed" if over else "Running",
            "conditions": conditions,
            "containerStatuses": [{"name": "trainer", "state": state}],
        }
        self.pods.take("MODIFIED", {"metadata": metadata, "spec": {"nodeName": "node-a"}, "status": told})

    def observe(self) -> Observation:
        (run,) = self.runs.indexed(RUN)
        return self.loop._observe(run, seen.run_seen(run))

    def settle(self) -> LoRAFineTuneStatus:
        """Decide, and write the status down; what the engine wants created is the test's to make."""
        told = decide(self.observe()).status
        self.put_run(RUN, "timber", told.to_json())
        return told


def honest(dice: random.Random, attempt: int, resumed: int) -> list[dict[str, Any]]:
    """What the attempt's own trainer says, in order: it counts up from where it resumed."""
    events, step = [], resumed
    for sequence in range(1, 401):
        step = min(STEPS, step + dice.randrange(2))
        kind = "started" if sequence == 1 else "progress"
        events.append({"type": kind, "runUid": RUN, "attempt": attempt, "sequence": sequence, "step": step})
    return events


HUGE: Final = (MAX_STEPS + 1, 2**63, 10**30, -1, -(2**63), 1.5, "many", None, [], {}, 1e308)


def forged(dice: random.Random, true: dict[str, Any], current: int) -> tuple[dict[str, Any], str]:
    """Return something that must not count, made of what is true, and the pod that sends it."""
    step = dice.randrange(STEPS * 3)
    return dice.choice(
        [
            (true | {"step": step, "sequence": 2**53}, "stranger"),
            (true | {"step": step, "sequence": 2**53}, f"pod-{current + 1}"),
            (true | {"step": step, "runUid": OTHER}, f"pod-{current}"),
            (true | {"step": step, "runUid": "no-such-run"}, f"pod-{current}"),
            (true | {"attempt": max(1, current - 1), "sequence": 10**6, "step": step}, f"pod-{max(1, current - 1)}")
            if current > 1
            else (true | {"attempt": 0}, "pod-1"),
            (true | {"attempt": current + 1, "sequence": 10**6, "step": step}, f"pod-{current}"),
            (true | {"step": dice.choice(HUGE), "sequence": 2**52}, f"pod-{current}"),
            (true | {"sequence": dice.choice((*HUGE[1:], 0, 2**53 + 1)), "step": step}, f"pod-{current}"),
            (true | {"type": "checkpoint", "sequence": 2**52}, f"pod-{current}"),
        ]
    )


async def test_the_step_never_goes_down() -> None:
    """Nothing but the words of the current attempt's own pod is believed, each once, in their order."""
    dice = random.Random(1)
    operator = Operator()
    counted: Counter[Result] = Counter()
    sent: list[tuple[dict[str, Any], str]] = []
    step, top = 0, 0
    for attempt in range(1, ATTEMPTS + 1):
        operator.put_pod(attempt)
        operator.settle()
        # Later attempts find no checkpoint, and do not come so far again.
        true = honest(dice, attempt, max(0, top - dice.randrange(60)) if attempt <= 3 else 0)
        written = 0
        for count in range(EVENTS // ATTEMPTS):
            operator.now += 0.01
            draw = dice.random()
            if draw < 0.35:
                # In order on the whole, but late, early and twice; at the end all of it has been sent.
                place = min(len(true) - 1, max(0, count * len(true) // (EVENTS // ATTEMPTS) + dice.randrange(-20, 20)))
                body, pod = true[place], f"pod-{attempt}"
                sent.append((body, pod))
            elif draw < 0.6 and sent:
                body, pod = dice.choice(sent)  # of any attempt so far
            else:
                body, pod = forged(dice, dice.choice(true), attempt)
            verdict = await operator.judge.judge(cast(web.Request, Request(json.dumps(body).encode(), pod)))
            counted[verdict.result] += 1
            if verdict.result is Result.ACCEPTED:
                assert pod == f"pod-{attempt}", "another pod was heard"
                assert body["runUid"] == RUN
                assert body in true, "what was forged was believed"
                assert body["sequence"] > written, "what is written down was folded in again"
                top = max(top, body["step"])
            if count % 25 == 0:
                told = operator.settle()
                assert (told.step or 0) >= step, "the step went down"
                step, written = told.step or 0, told.event_sequence or 0
                assert step <= top, "a step was seen that no attempt has said"
            if dice.random() < 0.002:
                operator.restart()
        assert operator.settle().step == top, "what was said last is not lost"
        operator.put_pod(attempt, over=True)
        told = operator.settle()
        assert told.attempts[-1].cause == "Preempted"
    assert sum(counted.values()) == EVENTS // ATTEMPTS * ATTEMPTS
    wanted = {Result.ACCEPTED, Result.STALE, Result.FENCED, Result.FORBIDDEN, Result.GONE, Result.MALFORMED}
    assert all(counted[one] > 500 for one in wanted), counted
    (run,) = operator.runs.indexed(RUN)
    last = status.parse(run)
    assert last.preemptions == ATTEMPTS
    assert (last.step or 0) > max(entry.to_step or 0 for entry in last.attempts), "it is the folded ones' step"
    assert all((entry.to_step or 0) <= STEPS for entry in last.attempts)


async def test_a_trainer_that_lies_harms_its_own_run_alone() -> None:
    """The current pod is who it is: leaps in step and sequence are believed, go no further than the end, and stay."""
    dice = random.Random(2)
    operator = Operator()
    step = 0
    operator.put_pod(1)
    operator.settle()
    for count in range(10_000):
        operator.now += 0.01
        leap = dice.choice([dice.randrange(50), dice.randrange(2**53)])
        body = {"version": 1, "type": "progress", "runUid": RUN, "attempt": 1, "sequence": leap + 1}
        body["step"] = dice.choice([dice.randrange(STEPS), dice.randrange(MAX_STEPS)]) if count > 5000 else count // 99
        await operator.judge.judge(cast(web.Request, Request(json.dumps(body).encode(), "pod-1")))
        if count % 25 == 0:
            told = operator.settle()
            assert step <= (told.step or 0) <= STEPS
            step = told.step or 0
        if dice.random() < 0.01:
            operator.restart()
    (other,) = operator.runs.indexed(OTHER)
    assert status.parse(other) == LoRAFineTuneStatus()
