"""Promise 2 everywhere: a run with everything on, ended at each of its moments, killed or with a notice, and gone on
with. The bytes of each LoRA file are those of the undisturbed one, which is played by a process of its own.

=================  ==================================================================================================
the issue's words  where they are played
=================  ==================================================================================================
SIGTERM in every   `test_ended_at_each_moment`, one case for each phase: download, scan, caching (Conditioning), step
phase              (Training), validation, save (Saving), upload (all requests of a save), export; and the class images
killed at random   `test_ended_again_and_again`: up to five attempts of one run, each ended at a random moment
after every step   `test_ended_after_every_step`, and with real signals in test_trainer_resume.py
inside a save      `test_ended_inside_a_save`: before each request of a checkpoint, and of what is saved beside it
EMA, captions,     on in all of them: see `whole.py`
flips, crops ...
other vectors      test_trainer_instructions.py
=================  ==================================================================================================

Real processes with real signals are in test_trainer_resume.py; each request of the storage protocol with each fault is
in test_trainer_crashes.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from lorafinetune.contract.event import Phase
from lorafinetune.storage import head as heads
from tests.integration.trainer import lives
from tests.integration.trainer.lives import Lived
from tests.integration.trainer.process import Run, Stage, Trainers
from tests.integration.trainer.whole import begin, hashes

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def sources(trainers: Trainers) -> dict[str, Any]:
    """Base model, images and class images in the bucket: to fetch them takes requests."""
    bucket = trainers.s3.bucket("s3://loras/sources/")
    for name, folder in {"model": trainers.model, "photos": trainers.photos, "class": trainers.photos}.items():
        for path in folder.rglob("*"):
            if path.is_file():
                bucket.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
    place = "s3://loras/sources"
    return {
        "baseModel": {"source": f"{place}/model/"},
        "dataset": {"source": f"{place}/photos/", "classSource": f"{place}/class/"},
    }


class Theatre:
    """Plays the attempts of runs that are alike, and knows what an undisturbed one comes to."""

    def __init__(self, trainers: Trainers, stage: Stage, name: str, changes: dict[str, Any]) -> None:
        self._trainers, self._stage, self._name, self._changes = trainers, stage, name, changes
        self._runs = 0
        undisturbed = begin(trainers, f"{name}-undisturbed", **changes)
        undisturbed.finish()
        self.right = hashes(undisturbed)
        run = self.begin()
        self.moments = self.live(run, 1).moments
        assert hashes(run) == self.right, "a life is not what a process is"

    def begin(self, **changes: Any) -> Run:
        self._runs += 1
        run = begin(self._trainers, f"{self._name}-{self._runs}", **{**self._changes, **changes})
        heads.mark_owner(run.bucket, heads.Owner(run_uid=run.config.run.uid))
        return run

    def live(self, run: Run, number: int, ends_at: int | str | None = None, *, notice: bool = False) -> Lived:
        lived = self._stage.call(lives.live, run.config.model_dump(), number, ends_at, notice=notice)
        # After a notice the main thread may stumble over what goes: nobody listens to it any more.
        assert lived.code in ((None, 0, 75) if ends_at is not None else (0,)), lived.failure
        if notice and lived.code == 75:
            assert lived.durable_step == lived.step >= lived.done, "with a notice no step is lost"
        return lived

    def ended_at(self, place: int, *, notice: bool) -> None:
        """Play a run whose first attempt ends at that moment, and judge it."""
        run = self.begin()
        first = self.live(run, 1, place, notice=notice)
        if first.code != 0:
            last = self.live(run, 2)
            assert last.resumed is not None
            assert last.resumed >= (first.durable_step if notice else first.told)
        self.judge(run, f"{'SIGTERM' if notice else 'SIGKILL'} at {first.moments[-1 if not notice else place]}")

    def judge(self, run: Run, story: str) -> None:
        """The bytes are right, and nothing half-done is left."""
        assert hashes(run) == self.right, story
        head = run.head
        assert head.artifact is not None
        named = {one.folder for one in head.checkpoints} | {head.artifact.folder} | set(head.garbage)
        folders = {"/".join(one.key.split("/")[:2]) + "/" for one in run.bucket.walk()}
        assert {one for one in folders if one.startswith(("checkpoints/", "artifacts/"))} <= named, story


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage()
    made.call(lives.begin, str(tmp_path_factory.mktemp("stage")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def theatre(trainers: Trainers, stage: Stage, sources: dict[str, Any]) -> Theatre:
    return Theatre(trainers, stage, "whole", sources)


def _play(theatre: Theatre, phase: Phase) -> None:
    """End a run at the moments of a phase.

    Killed as it begins and before each write, for between two of them a kill leaves the same behind; with a notice at
    all the others, for what the threads are doing then counts. Of like requests in a row, every third.
    """
    places = [place for place, moment in enumerate(theatre.moments) if moment.phase == phase]
    assert places
    row, before = 0, ""
    for place in places:
        what = theatre.moments[place].what
        row, before = (row + 1 if _kind(what) and _kind(what) == before else 0), _kind(what)
        if row % 3 == 0:
            if place == places[0] or _writes(what):
                theatre.ended_at(place, notice=False)
            if not _writes(what):
                theatre.ended_at(place, notice=True)


def _writes(what: str) -> bool:
    return what.startswith(("PUT", "POST"))


def _kind(what: str) -> str:
    """What all requests of a row have in common: the method and the folder. An event or a step is alone."""
    folder, slash, _ = what.rpartition("/")
    return folder if slash else ""


@pytest.mark.parametrize("phase", [one for one in Phase if one is not Phase.GENERATING])
def test_ended_at_each_moment(phase: Phase, theatre: Theatre) -> None:
    _play(theatre, phase)


def test_ended_while_class_images_are_made(trainers: Trainers, stage: Stage, sources: dict[str, Any]) -> None:
    made = {"classSource": None, "classImages": 2}
    theatre = Theatre(trainers, stage, "generating", {**sources, "dataset": {**sources["dataset"], **made}})
    _play(theatre, Phase.GENERATING)


def test_ended_inside_a_save(theatre: Theatre) -> None:
    """The moments of the first save, each in the way that the cases above leave out."""
    names = [moment.what for moment in theatre.moments]
    first = next(place for place, name in enumerate(names) if name.startswith("PUT") and "/checkpoints/" in name)
    for place in range(first - 1, names.index("checkpoint 2") + 1):
        theatre.ended_at(place, notice=_writes(names[place]))


@pytest.mark.parametrize("notice", [False, True], ids=["SIGKILL", "SIGTERM"])
def test_ended_after_every_step(notice: bool, theatre: Theatre) -> None:
    """Killed, as soon as its checkpoint is durable; with a notice, as soon as it is done."""
    run = theatre.begin(checkpoint={"everySteps": 1})
    for step in range(1, 7):
        lived = theatre.live(run, step, f"progress {step}" if notice else f"checkpoint {step}", notice=notice)
        assert lived.resumed == step - 1
    last = theatre.live(run, 7)
    assert last.resumed == 6
    theatre.judge(run, "ended after every step")


@pytest.mark.parametrize("seed", range(6))
def test_ended_again_and_again(seed: int, theatre: Theatre) -> None:
    """Up to five attempts, each ended at a random moment, with notice or without."""
    keys = random.Random(seed)
    run, story = theatre.begin(), []
    for number in range(1, 6):
        place, notice = keys.randrange(len(theatre.moments)), keys.random() < 0.5
        lived = theatre.live(run, number, place, notice=notice)
        story.append(f"{place} {'SIGTERM' if notice else 'SIGKILL'}")
        if lived.code == 0:
            break
    else:
        theatre.live(run, 6)
    theatre.judge(run, ", ".join(story))
