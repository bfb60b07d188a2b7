"""Promise 3 and 4 at every storage request of a run: errors, lost answers, short reads, rivals, tombstones, kills.

After each change of what the server holds: all that the head names is whole, nobody commits who is fenced, and there is
a durable checkpoint if there was one. After the run: the artifact is right, and nothing is left over.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import botocore.endpoint
import pytest

from lorafinetune.contract.event import Saved
from lorafinetune_trainer.saving import state
from tests.integration.trainer import generations
from tests.integration.trainer.faults import Kind, Proxy, proxy
from tests.integration.trainer.generations import INTERFERENCES, Run, Way, at_request
from tests.integration.trainer.s3 import Access

RESUMED_AFTER = 32
"""Requests of an attempt after which another one resumes: two checkpoints have been committed."""


@pytest.fixture(scope="module")
def between(s3: Access) -> Iterator[Proxy]:
    with proxy(s3.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
def way(s3: Access, between: Proxy) -> Way:
    generations.prepare(s3)
    return Way(s3, between)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between the client's tries are a hundred times shorter, and a state has three parts."""
    pauses = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    monkeypatch.setattr(botocore.endpoint, "time", pauses)
    split = state.split
    monkeypatch.setattr(state, "split", lambda tensors: split(tensors, 64 * 1024 + 700))


def count(s3: Access, between: Proxy, way: Way) -> int:
    """How many requests an undisturbed run makes."""
    run = Run(s3, between, way)
    del between.seen[:]
    generation = run.generation()
    generation.play()
    assert generation.finished, generation.failure
    number = len(between.seen)
    run.finish()
    run.collect()
    return number


def disturb(run: Run, name: str, place: int, *, resumes: bool = False, times: int = 1) -> bool:
    """Play a run at whose request *place* that happens, to its good end; return whether there was such a request.

    Where it *resumes*, those are the requests of its second attempt, whose predecessor was killed on its way.
    """
    happened: list[int] = []

    def what(run: Run, generation: generations.Generation) -> Kind | None:
        happened.append(place)
        return INTERFERENCES[name](run, generation)

    if resumes:
        before = run.generation()
        run.between.interfere = at_request(run, before, RESUMED_AFTER, INTERFERENCES["killed after the request"])
        before.play()
    first = run.generation()
    run.between.interfere = at_request(run, first, place, what, times)
    first.play()
    run.between.interfere = None
    assert not run.wrong, run.wrong
    if name == "tombstone" and happened:
        assert first.failure is not None or first.finished
        run.collect()
        return True
    if name in ("a rival claims", "a rival commits") and happened and times == 1:
        assert first.finished or (first.failure is not None and first.failure.reason == "Fenced"), first.failure
    for step, saved in first.rescued:
        if first.failure is None and saved is not Saved.NONE:
            newest = generations.head_of(run).newest
            assert newest is not None
            assert newest.step == step, "no step is lost with a notice"
    run.finish()
    run.collect()
    return bool(happened)


def play(s3: Access, between: Proxy, way: Way, name: str, place: int, **members: Any) -> bool:
    """The same on a new run, with a failure that says where."""
    try:
        return disturb(Run(s3, between, way), name, place, **members)
    except Exception as error:
        raise AssertionError(f"{name} at request {place} {members or ''}: {error!r}") from error
    finally:
        between.interfere = between.served = None


def test_an_undisturbed_run(s3: Access, between: Proxy, way: Way) -> None:
    assert count(s3, between, way) > RESUMED_AFTER


@pytest.mark.parametrize("name", INTERFERENCES)
def test_at_a_request(name: str, s3: Access, between: Proxy, way: Way) -> None:
    """One place of each kind; all of them are in make test-long."""
    keys = random.Random(f"a place for {name}")
    play(s3, between, way, name, keys.randrange(50))
    play(s3, between, way, name, keys.randrange(20), resumes=True)


@pytest.mark.parametrize(
    ("name", "place", "resumes"),
    [
        ("a rival commits", 2, False),  # between the look at the head and that at the checkpoints
        ("a rival commits", 4, False),  # between the claim and the look at what was claimed
        ("head deleted", 8, True),  # the artifact is there, and no head comes to name it
        ("tombstone", 15, True),  # the artifact is named already
    ],
)
def test_at_a_request_where_it_once_went_wrong(
    name: str, place: int, resumes: bool, s3: Access, between: Proxy, way: Way
) -> None:
    play(s3, between, way, name, place, resumes=resumes)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("resumes", [False, True], ids=["from the start", "of an attempt that resumes"])
@pytest.mark.parametrize("name", INTERFERENCES)
def test_at_every_request(name: str, resumes: bool, s3: Access, between: Proxy, way: Way) -> None:
    place = 0
    while play(s3, between, way, name, place, resumes=resumes):
        place += 1
    assert place > (15 if resumes else RESUMED_AFTER), "fewer requests than such a run makes"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["error before", "error after", "answer lost", "connection dropped", "short read"])
def test_a_storm_from_every_third_request(name: str, s3: Access, between: Proxy, way: Way) -> None:
    """Eight requests in a row go wrong: saves fail, attempts may end, and what was durable stays so."""
    place = 0
    while play(s3, between, way, name, place, times=8):
        place += 3
    assert place > 25


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_things_at_random_requests(s3: Access, between: Proxy, way: Way) -> None:
    for seed in range(200):
        keys = random.Random(seed)
        names, places = keys.sample(list(INTERFERENCES), 2), sorted(keys.sample(range(60), 2))
        run = Run(s3, between, way)
        try:
            for name, place in zip(names, places, strict=True):
                generation = run.generation()
                between.interfere = at_request(run, generation, place, INTERFERENCES[name])
                generation.play()
                between.interfere = None
                assert not run.wrong, run.wrong
            if "tombstone" not in names:
                run.finish()
            run.collect()
        except Exception as error:
            raise AssertionError(f"seed {seed}, {names} at {places}: {error!r}") from error
        finally:
            between.interfere = between.served = None
