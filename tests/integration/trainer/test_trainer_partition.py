"""Promise 4 over a thousand partitions: an attempt that was cut off and comes back changes nothing that counts."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import botocore.endpoint
import pytest

from localcluster.waiting import eventually
from lorafinetune.contract import layout
from lorafinetune.contract.runconfig import Storage
from lorafinetune.storage import head as stored
from lorafinetune.storage import inventory
from lorafinetune_trainer.saving import checkpoints
from tests.integration.trainer import generations
from tests.integration.trainer.faults import Fault, Kind, Proxy, proxy
from tests.integration.trainer.partition import Cut, Interleaving, Link
from tests.integration.trainer.process import Run, Trainer, Trainers
from tests.integration.trainer.s3 import BUCKET, Access

FEW, MANY = 24, 1000
TRAINING = {"steps": 14}


@pytest.fixture(scope="module")
def links(s3: Access) -> list[Link]:
    generations.prepare(s3)
    return [Link(s3) for _ in range(3)]


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request of an attempt at a time, and pauses of a clock that is made up."""
    insist = stored._insist

    def hurried(ask: Callable[[], Any], what: str, passing: Any, *, limit: float = 60.0, **_: Any) -> Any:
        now = 0.0

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

        return insist(ask, what, passing, limit=limit, clock=lambda: now, sleep=sleep)

    monkeypatch.setattr(stored, "_insist", hurried)
    monkeypatch.setattr(checkpoints, "PARALLEL", 1)
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))


def play(s3: Access, links: list[Link], seeds: range) -> Counter[str]:
    """Play an interleaving for each seed, with a failure that says which."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        try:
            seen += Interleaving(s3, links, seed).play()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return seen


def came_back(seen: Counter[str]) -> int:
    return sum(seen[f"came back after: {cut.name}"] for cut in Cut)


def test_no_stale_commit_in_a_few_partitions(s3: Access, links: list[Link]) -> None:
    seen = play(s3, links, range(FEW))
    assert came_back(seen) > FEW / 2, seen
    assert seen["fenced"] > FEW / 2, seen


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_stale_commit_in_a_thousand_partitions(s3: Access, links: list[Link]) -> None:
    seen = play(s3, links, range(FEW, FEW + MANY))
    assert came_back(seen) > MANY / 2, seen
    assert seen["fenced"] > MANY / 2, seen
    assert seen["requests that came late"] > MANY / 10, seen
    assert all(seen[f"came back after: {cut.name}"] > MANY / 20 for cut in Cut), seen


# The same with the tiny SDXL, as processes: an old attempt that goes on after a new one has taken its place.


@pytest.fixture(scope="module")
def undisturbed(trainers: Trainers) -> bytes:
    run = trainers.run("undisturbed-by-partitions", training=TRAINING)
    run.finish()
    return run.file()


def _stand_still(run: Run, between: Proxy) -> Trainer:
    old = run.start()
    old.wait_for_checkpoint(2)
    old.kill(signal.SIGSTOP)
    return old


def _lose_the_link(run: Run, between: Proxy) -> Trainer:
    old = run.start(storage=behind(run, between))
    old.wait_for_checkpoint(2)
    between.faults = [Fault(Kind.DROP, method, times=100_000) for method in ("PUT", "GET", "HEAD", "POST", "DELETE")]
    return old


def _held(method: str, **where: Any) -> Callable[[Run, Proxy], Trainer]:
    """Its request is under way for long: it arrives after all that the new attempt does."""

    def hold(run: Run, between: Proxy) -> Trainer:
        between.faults = [Fault(Kind.HOLD, method, **where)]
        old = run.start(storage=behind(run, between))
        eventually(lambda: between.happened, 60, "that request is under way")
        return old

    return hold


def behind(run: Run, between: Proxy) -> Storage:
    return run.config.storage.model_copy(update={"endpoint": between.endpoint})


PARTITIONS: dict[str, Callable[[Run, Proxy], Trainer]] = {
    "the process stands still": _stand_still,
    "the link is cut": _lose_the_link,
    "its swap of the head is under way": _held("PUT", suffix=layout.HEAD, body=b'"step":4'),
    "its manifest is under way": _held("PUT", contains="/checkpoints/1-4/manifest"),
    "a deletion of what was garbage is under way": _held("POST", suffix=f"/{BUCKET}"),
}
QUICK = ("the process stands still", "its swap of the head is under way")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how in QUICK else pytest.mark.long) for how in PARTITIONS]
)
def test_an_attempt_that_comes_back_is_fenced(how: str, trainers: Trainers, undisturbed: bytes, name: str) -> None:
    run = trainers.run(name, training=TRAINING)
    with proxy(trainers.s3.endpoint) as between:
        old = PARTITIONS[how](run, between)
        new = run.start()
        claimed = new.wait_for(lambda event: event["type"] == "started")
        assert claimed["attempt"] == 2
        before = run.head
        new.wait_for_checkpoint(claimed["step"] + 2)  # it goes on while the old one comes back
        between.faults.clear()
        between.let_go.set()
        old.kill(signal.SIGCONT)
        assert old.end() == 76, old.tail()
        assert old.last_words.reason == "Fenced"
        assert new.end() == 0, new.tail()
    head = run.head
    assert head.attempt == 2
    assert head.artifact is not None
    assert head.artifact.attempt == 2
    known = [entry.id for entry in before.checkpoints]
    assert all(entry.attempt == 2 or entry.id in known for entry in head.checkpoints), head.checkpoints
    for entry in (*head.checkpoints, head.artifact):
        inventory.verify(run.bucket, entry.folder, entry.manifest_sha256)
    assert run.file() == undisturbed
