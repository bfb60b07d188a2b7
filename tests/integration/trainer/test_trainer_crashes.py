"""Promise 3 and 4 at every storage request of a run: errors, lost answers, short reads, rivals, tombstones, kills.

After each change of what the server holds: all that the head names is whole, nobody commits who is fenced, and there is
a durable checkpoint if there was one. After the run: the artifact is right, and nothing is left over.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from types import SimpleNamespace

import botocore.endpoint
import pytest

from lorafinetune.contract.event import Saved
from lorafinetune_trainer.saving import state
from tests.integration.trainer import generations
from tests.integration.trainer.faults import Kind, Proxy, proxy
from tests.integration.trainer.generations import INTERFERENCES, Run, Way, at_request
from tests.integration.trainer.s3 import Access


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


@pytest.fixture
def run(s3: Access, between: Proxy, way: Way) -> Iterator[Run]:
    yield Run(s3, between, way)
    between.interfere = between.served = None


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


def disturb(run: Run, name: str, place: int, times: int = 1) -> bool:
    """Play a run at whose request *place* that happens, to its good end; return whether there was such a request."""
    happened: list[int] = []

    def what(run: Run, generation: generations.Generation) -> Kind | None:
        happened.append(place)
        return INTERFERENCES[name](run, generation)

    first = run.generation()
    run.between.interfere = at_request(run, first, place, what, times)
    first.play()
    run.between.interfere = None
    assert not run.wrong, run.wrong
    if name == "tombstone" and happened:
        assert first.failure is not None or first.finished
        run.collect()
        return True
    if name in ("a rival claims", "a rival commits") and happened:
        assert first.finished or (first.failure is not None and first.failure.reason == "Fenced"), first.failure
    for step, saved in first.rescued:
        if first.failure is None and saved is not Saved.NONE:
            newest = generations.head_of(run).newest
            assert newest is not None
            assert newest.step == step, "no step is lost with a notice"
    run.finish()
    run.collect()
    return bool(happened)


def test_an_undisturbed_run(s3: Access, between: Proxy, way: Way) -> None:
    assert count(s3, between, way) > 40


@pytest.mark.parametrize("name", INTERFERENCES)
def test_sample(name: str, s3: Access, between: Proxy, way: Way) -> None:
    """A few requests of each kind; all of them are in make test-long."""
    keys = random.Random(f"sample {name}")
    for place in sorted(keys.sample(range(60), 3)):
        run = Run(s3, between, way)
        try:
            disturb(run, name, place)
        except Exception as error:
            raise AssertionError(f"{name} at request {place}: {error!r}") from error
        finally:
            between.interfere = between.served = None
