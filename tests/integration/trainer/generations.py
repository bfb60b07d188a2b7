"""The attempts of one run as generations in this process: the real checkpoints, saver and bucket code on the real
server, with small states that are a function of the step, and an in-process kill.

A generation that is killed never gets another request out: each of its threads ends at its next one. All that the
server holds is looked at after every single change, in its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from lorafinetune.contract import layout
from lorafinetune.contract.event import EventType, Saved
from lorafinetune.contract.head import ConditioningEntry, Head
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from lorafinetune.storage.collect import bury, collect, prune
from lorafinetune.storage.rebuild import rebuild
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure, explain
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
from lorafinetune_trainer.saving.saver import Saver
from lorafinetune_trainer.telling.report import Reporter
from tests.integration.trainer.faults import Kind, Proxy
from tests.integration.trainer.s3 import BUCKET, Access

STEPS, EVERY = 5, 2
LIMIT = 60.0
PLAN = Plan(
    config_digest="0" * 64,
    dataset_digest="1" * 64,
    base_model_digest="2" * 64,
    micro_batch=1,
    precision="fp32",
    gradient_checkpointing=False,
    device="cpu",
    threads=1,
)
CONDITIONING = ConditioningEntry(manifest="conditioning/none", manifest_sha256="3" * 64)
_numbers = itertools.count(1)


class Killed(BaseException):
    """The generation is dead, and does not know it: no handler of errors may keep it alive."""


def snapshot(step: int) -> Snapshot:
    """The state at *step*: in three parts, each different at each step."""
    tensors = {f"lora.{name}": torch.arange(64.0) * (number + 1) + 1000 * step for number, name in enumerate("abc")}
    return Snapshot(step, step, tensors, {"notFinite": 0})


def product(step: int) -> dict[str, bytes]:
    """The artifact's files."""
    return {layout.LORA: f"the LoRA of step {step}".encode(), "README.md": b"card"}


class Way:
    """A way to the server for one generation at a time: two clients behind the proxy, that can be cut."""

    def __init__(self, s3: Access, between: Proxy) -> None:
        self.dead = False
        self.bucket = s3.at(between.endpoint).bucket(f"s3://{BUCKET}/")
        self.urgent = self.bucket.hasty(5.0)
        for bucket in (self.bucket, self.urgent):
            for client in (bucket._client, bucket._once):
                client.meta.events.register("before-send.s3", self._before_send)

    def _before_send(self, **_: Any) -> None:
        if self.dead:
            raise Killed


class _End(Ending):
    """Ends the generation, not the process."""

    failure: Failure | None = None

    def fail(self, failure: Failure) -> NoReturn:
        self.failure = self.failure or failure
        raise SystemExit

    def finish(self, code: int, **_: Any) -> NoReturn:
        raise AssertionError("only attempts of a process of their own end so")


class _Saver(Saver):
    """Its thread ends with the generation."""

    def __init__(self, *arguments: Any, **members: Any) -> None:
        self.ended = threading.Event()
        super().__init__(*arguments, **members)

    def _work(self) -> None:
        with contextlib.suppress(SystemExit, Killed):
            super()._work()
        self.ended.set()


class _Voice(Reporter):
    """Keeps what is told, and prints nothing."""

    def __init__(self, **members: Any) -> None:
        self.durable: list[int] = []
        super().__init__(**members)

    def tell(self, type_: EventType, step: int, **members: Any) -> None:
        if type_ is EventType.CHECKPOINT:
            self.durable.append(step)

    def _write(self, *_: Any, **__: Any) -> None:
        pass


class Run:
    """One run on the server, its generations, and what must hold at each moment."""

    def __init__(self, s3: Access, between: Proxy, way: Way) -> None:
        number = next(_numbers)
        self.config = RunConfig.model_validate(
            {
                "run": {"name": "run", "uid": f"{number:08}-uid"},
                "baseModel": {"source": "/unused"},
                "dataset": {"source": "/unused"},
                "storage": {"uri": f"s3://{BUCKET}/"},
            }
        )
        self.uid = self.config.run.uid
        self.bucket = DIRECT[s3.endpoint].at(self.config.prefix)
        self.folder = s3.credentials.parent / "data" / BUCKET / self.config.prefix.key
        self.between, self.way = between, way
        self.attempt = 0
        self.told = 0
        """The newest step that an attempt has told to be durable."""
        self.offered: list[int] = []
        """Steps that the saver was given, by all attempts."""
        self.seen: Head | None = None
        self.wrong: list[str] = []
        self.lost = False
        stored.mark_owner(self.bucket, stored.Owner(run_uid=self.uid))
        between.served = self._look

    # What must hold

    def _look(self) -> None:
        """Read what lies on the server, after each change."""
        try:
            self.look()
        except Exception as error:
            self.wrong.append(repr(error))

    def look(self) -> None:
        path, before = self.folder / layout.HEAD, self.seen
        if not path.exists():
            return
        head = self.seen = Head.model_validate_json(path.read_bytes())
        for entry in head.checkpoints:
            self._whole(entry.folder, entry.manifest_sha256)
        if head.artifact is not None and not head.tombstone:
            self._whole(head.artifact.folder, head.artifact.manifest_sha256)
        if before is None:
            return
        if head.attempt < before.attempt or (before.tombstone and not head.tombstone):
            self.wrong.append(f"the head went back from {before} to {head}")
        new = [one for one in head.checkpoints if one not in before.checkpoints]
        if any(one.attempt != before.attempt or before.tombstone for one in new):
            self.wrong.append(f"{new} was committed under {before}")
        if before.checkpoints and not head.checkpoints and not head.tombstone:
            self.wrong.append("the last durable checkpoint is gone")
        if [one.step for one in head.checkpoints] != sorted({one.step for one in head.checkpoints}):
            self.wrong.append(f"out of order: {head.checkpoints}")

    def _whole(self, folder: str, sha256: str) -> None:
        where = self.folder / folder
        manifest = where / layout.MANIFEST
        if not manifest.exists():
            self.wrong.append(f"the head names {folder}, which has no manifest")
            return
        body = manifest.read_bytes()
        if hashlib.sha256(body).hexdigest() != sha256:
            self.wrong.append(f"the manifest of {folder} is another one")
        for file in json.loads(body)["files"]:
            found = where / file["name"]
            if not found.exists() or hashlib.sha256(found.read_bytes()).hexdigest() != file["sha256"]:
                self.wrong.append(f"{folder}{file['name']} is not what the manifest names")

    # What happens

    def generation(self) -> Generation:
        """Make the next attempt."""
        self.attempt += 1
        return Generation(self, self.attempt)

    def finish(self, patience: int = 4) -> None:
        """Play undisturbed attempts until one has published the artifact, and look at all that is left."""
        for _ in range(patience):
            self.between.interfere = None
            if self.lost and stored.read(self.bucket).head is None:
                rebuild(self.bucket, run_uid=self.uid, attempt=self.attempt, keep=2)
            last = self.generation()
            last.play()
            if last.finished:
                break
        assert not self.wrong, self.wrong
        assert last.finished, last.failure
        self.look()
        assert not self.wrong, self.wrong
        head = stored.read(self.bucket).head
        assert head is not None
        assert head.artifact is not None
        assert self.bucket.get(head.artifact.folder + layout.LORA).body == product(STEPS)[layout.LORA]
        named = {one.folder for one in head.checkpoints} | {head.artifact.folder} | set(head.garbage)
        # With a lost head its garbage was forgotten, and an attempt that finds its run finished sweeps nothing.
        assert self.lost or self._folders() <= named, f"left over: {self._folders() - named}"
        prune(self.bucket, run_uid=self.uid)
        assert self._folders() == {head.artifact.folder}

    def _folders(self) -> set[str]:
        return {f"{one.key.rpartition('/')[0]}/" for one in self.bucket.walk() if "/" in one.key}

    def collect(self) -> None:
        """Delete the run, when nobody can write any more; nothing is left."""
        collect(self.bucket, run_uid=self.uid, attempt=self.attempt, keep_artifact=False)
        assert list(self.bucket.walk()) == []
        assert not self.wrong, self.wrong

    def rival(self, *, commits: bool) -> None:
        """Let a later attempt claim the head now, and commit too."""
        with self.between.one_at_a_time:
            self.attempt += 1
            checkpoints = Checkpoints(self.bucket, self.bucket, self.config, f"pod-{self.attempt}")
            checkpoints.claim(self.attempt, expect_head=False)
            self._look()
            found = checkpoints.newest_verified()
            step = (found.entry.step if found is not None else 0) + 1
            if commits and step <= STEPS:
                checkpoints.commit(snapshot(step), SaveReason.PERIODIC)
                self.told = max(self.told, step)
                self._look()

    def bury(self) -> None:
        """Make the head a tombstone, as the operator does first when a run is deleted."""
        with self.between.one_at_a_time:
            bury(self.bucket, run_uid=self.uid, attempt=self.attempt, keep_artifact=False)
            self._look()

    def lose_head(self) -> None:
        """Delete the head, as nobody should."""
        with self.between.one_at_a_time:
            self.bucket.delete([layout.HEAD])
            self.seen, self.lost = None, True


DIRECT: dict[str, Bucket] = {}
"""One client for each server, without a proxy between: making one takes a tenth of a second."""


@dataclass
class Generation:
    """One attempt, from claim to artifact, or to its death."""

    run: Run
    number: int
    finished: bool = False
    failure: Failure | None = None
    resumed: int | None = None
    noticed: bool = False
    rescued: list[tuple[int, Saved]] = field(default_factory=list)

    def play(self) -> None:
        """Live, until finished, failed or killed."""
        way, run = self.run.way, self.run
        way.dead = False
        place = run.config.prefix
        self._end = _End()
        self._voice = _Voice(run_uid=run.uid, attempt=self.number, webhook=None, on_stop=lambda *_: None)
        self._checkpoints = Checkpoints(way.bucket.at(place), way.urgent.at(place), run.config, f"pod-{self.number}")
        self._saver: _Saver | None = None
        self._step = 0
        thread = threading.Thread(target=self._live, daemon=True)
        thread.start()
        thread.join(LIMIT)
        assert not thread.is_alive(), "it neither ends nor goes on"
        self.failure = self._end.failure or self.failure
        if self._saver is not None:
            self._end_saver(self._saver)
        run.told = max([run.told, *self._voice.durable])

    def notice(self) -> None:
        """SIGTERM: rescue the newest step, in a thread of its own, and then die."""
        saver = self._saver
        if saver is None:
            self.run.way.dead = True
            return
        self._step = min(self._step + 1, STEPS)  # training has gone on while that request was made

        def rescue() -> None:
            step = self._step
            try:
                saved = saver.rescue(time.monotonic() + 20.0)
            except BaseException as error:
                self.failure = explain(error)
            else:
                self.rescued.append((max(step, self._end.standing.step), saved.saved))
            self.run.way.dead = True

        self._rescuer = threading.Thread(target=rescue, daemon=True)
        self.noticed = True
        self._end.noticed.set()
        self._rescuer.start()

    def _live(self) -> None:
        try:
            self._train()
        except (Killed, SystemExit):
            pass
        except BaseException as error:
            self.failure = explain(error)
        if self.noticed:
            self._wait_for_rescue()

    def _train(self) -> None:
        run, checkpoints = self.run, self._checkpoints
        told = run.told  # before the claim: what a rival commits after it is not for this attempt to find
        head = checkpoints.claim(self.number, expect_head=told > 0)
        made = head.artifact
        if made is not None and made.step >= STEPS and checkpoints.is_whole(made):
            self.finished = True
            return
        found = checkpoints.newest_verified()
        self.resumed = self._step = found.entry.step if found is not None else 0
        if found is not None:
            loaded, right = found.snapshot(), snapshot(self._step)
            same = all(torch.equal(loaded.tensors[name], right.tensors[name]) for name in right.tensors)
            if loaded.step != self._step or not same:
                run.wrong.append(f"what was loaded is not the state of step {self._step}")
        damaged = len(checkpoints.rejected)
        allowed = sorted({0, *run.offered})[-2 - damaged :] if run.offered else [0]
        if self._step < (told if not damaged else allowed[0]) or self._step < allowed[0]:
            run.wrong.append(f"resumed at {self._step}, though {told} was durable, {run.offered} were offered")
        checkpoints.pin(PLAN, CONDITIONING)
        standing = self._end.standing
        standing.step = standing.durable_step = self._step
        self._saver = saver = _Saver(
            checkpoints, take=lambda: snapshot(self._step), ending=self._end, reporter=self._voice
        )
        while self._step < STEPS:
            self._pause()
            self._step += 1
            standing.step = self._step
            if self._step % EVERY == 0 and self._step < STEPS:
                self._offer(saver, SaveReason.PERIODIC)
        if standing.durable_step < self._step:
            self._offer(saver, SaveReason.FINAL)
        self._pause()
        checkpoints.publish(self._step, self._step, product(self._step), {})
        checkpoints.tidy()
        self.finished = True

    def _offer(self, saver: Saver, reason: SaveReason) -> None:
        self.run.offered.append(self._step)
        saver.offer(snapshot(self._step), reason)
        saver.drain()
        self._pause()

    def _wait_for_rescue(self) -> None:
        """Wait for the one that another thread has begun, or is about to."""
        deadline = time.monotonic() + LIMIT
        while not self.run.way.dead and time.monotonic() < deadline:
            time.sleep(0.005)

    def _pause(self) -> None:
        """Die, if that has been decided: between two steps is as good a moment as any."""
        if self._end.failure is not None or self.run.way.dead:
            raise Killed
        if self.noticed:
            self._wait_for_rescue()
            raise Killed

    def _end_saver(self, saver: _Saver) -> None:
        """Let the saver's thread meet its death, so that thousands of generations leave no thousands of threads."""
        self.run.way.dead = True
        saver.offer(snapshot(10**6), SaveReason.PERIODIC)
        assert saver.ended.wait(LIMIT), "the saver lives on"


Interference = Callable[[Run, Generation], Kind | None]
"""What happens at the chosen request: a kind of fault, or None where it goes on."""


def _kill(run: Run, after: bool) -> Kind:
    run.way.dead = True
    return Kind.LOSE_ANSWER if after else Kind.DROP


INTERFERENCES: dict[str, Interference] = {
    "killed before the request": lambda run, _: _kill(run, after=False),
    "killed after the request": lambda run, _: _kill(run, after=True),
    "error before": lambda *_: Kind.REFUSE,
    "error after": lambda *_: Kind.ERROR_AFTER,
    "answer lost": lambda *_: Kind.LOSE_ANSWER,
    "connection dropped": lambda *_: Kind.DROP,
    "short read": lambda *_: Kind.BREAK_OFF,
    "answer damaged": lambda *_: Kind.GARBLE,
    "SIGTERM": lambda _, generation: generation.notice(),
    "a rival claims": lambda run, _: run.rival(commits=False),
    "a rival commits": lambda run, _: run.rival(commits=True),
    "tombstone": lambda run, _: run.bury(),
    "head deleted": lambda run, _: run.lose_head(),
}


def at_request(run: Run, generation: Generation, place: int, what: Interference, times: int = 1) -> Callable[..., Any]:
    """Return what the proxy asks: *what* happens at the request number *place* (0, 1 ...), and at the next ones."""
    numbers = itertools.count()

    def interfere(method: str, path: str) -> Kind | None:
        if not place <= next(numbers) < place + times:
            return None
        kind = what(run, generation)
        if kind is Kind.GARBLE and (method != "GET" or layout.CHECKPOINTS not in path):
            return None  # of the head no hash is known
        return kind

    return interfere


def prepare(s3: Access) -> None:
    """Make the direct client of a server, once."""
    if s3.endpoint not in DIRECT:
        DIRECT[s3.endpoint] = s3.bucket(f"s3://{BUCKET}/")


def head_of(run: Run) -> Head:
    found = stored.read(run.bucket).head
    assert found is not None
    return found
