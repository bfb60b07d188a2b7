"""The saver beside the training thread and at SIGTERM, in real threads, on the real server behind a slow link."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch

from localcluster.waiting import eventually
from lorafinetune.contract import layout
from lorafinetune.contract.event import Saved
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage import errors
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.ending import Ending, Rescued
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
from lorafinetune_trainer.saving.saver import Beside, Saver
from lorafinetune_trainer.saving.uploads import GivenUp
from lorafinetune_trainer.telling.report import Reporter
from tests.integration.trainer.faults import Fault, Kind, Proxy, proxy
from tests.integration.trainer.s3 import Access

MIB = 1024 * 1024
NOTICE = 30.0
SIZE = 16 * MIB
"""Of a state: more than lies in the sockets between us and the proxy."""


def snapshot(step: int, size: int = SIZE) -> Snapshot:
    return Snapshot(step, step, {"lora.a": torch.full((size // 4,), float(step))})


@dataclass
class Stand:
    """An attempt with a saver, whose newest state is what the test says."""

    bucket: Bucket
    between: Proxy
    saver: Saver
    ending: Ending
    take: Callable[[], Snapshot] = lambda: snapshot(1)
    beside: Beside | None = None
    calls: list[tuple[int, float | None]] = field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        head = stored.read(self.bucket).head
        assert head is not None
        return [entry.step for entry in head.checkpoints]

    def begin(self, step: int, size: int = SIZE, sent: int = MIB) -> None:
        """Begin to save, and return when *sent* bytes are on their way."""
        self.saver.offer(snapshot(step, size), SaveReason.PERIODIC)
        eventually(lambda: (saving := self.saver._saving) and saving.upload.sent >= sent, 20, "it is being sent")

    def rescue(self, newest: int, size: int = SIZE, notice: float = NOTICE) -> Rescued:
        self.take = lambda: snapshot(newest, size)
        return self.saver.rescue(time.monotonic() + notice)


@pytest.fixture
def stand(s3: Access, name: str) -> Iterator[Stand]:
    config = RunConfig.model_validate(
        {
            "run": {"name": name, "uid": f"{name}-uid"},
            "baseModel": {"source": "/unused"},
            "dataset": {"source": "/unused"},
            "storage": {"uri": "s3://loras/"},
        }
    )
    with proxy(s3.endpoint) as between:
        bucket = s3.at(between.endpoint).bucket(str(config.prefix))
        stored.mark_owner(bucket, stored.Owner(run_uid=config.run.uid))
        checkpoints = Checkpoints(bucket, bucket.hasty(5.0), config, "pod")
        checkpoints.claim(1, expect_head=False)
        reporter = Reporter(run_uid=config.run.uid, attempt=1, webhook=None, on_stop=lambda *_: None, readable=False)
        ending = Ending(reporter=reporter)

        def beside(step: int, deadline: float | None) -> None:
            made.calls.append((step, deadline))
            if made.beside is not None:
                made.beside(step, deadline)

        def take() -> Snapshot:
            return made.take()  # what it is when it is asked

        saver = Saver(checkpoints, take=take, ending=ending, reporter=reporter, beside=beside)
        made = Stand(s3.bucket(str(config.prefix)), between, saver, ending)
        yield made


def test_an_older_upload_yields_to_a_newer_state_that_fits(stand: Stand) -> None:
    stand.between.link.bytes_per_second = SIZE
    stand.begin(2)
    assert stand.rescue(3) == Rescued(Saved.NEW)
    stand.saver.drain()
    assert stand.steps == [3], "the older one does not follow it into the head"
    assert stand.ending.standing.durable_step == stand.ending.standing.step == 3
    parts = [path for method, path in stand.between.seen if method == "PUT" and "/1-2/" in path]
    assert parts == [], "its part was not put to its end"


def test_an_older_upload_is_finished_where_the_newer_state_does_not_fit(stand: Stand) -> None:
    stand.between.link.bytes_per_second = SIZE
    stand.begin(2, sent=SIZE // 2)
    saved, message, reason = stand.rescue(3, size=15 * SIZE, notice=10.0)
    assert (saved, reason) == (Saved.NEW, "NoticeTooShort")
    assert "step 2, whose upload was under way, was saved" in message
    assert stand.steps == [2]
    assert (stand.ending.standing.durable_step, stand.ending.standing.step) == (2, 3)


def test_the_pace_of_earlier_uploads_is_what_is_believed(stand: Stand) -> None:
    stand.between.link.bytes_per_second = SIZE / 2
    stand.saver.offer(snapshot(1), SaveReason.PERIODIC)
    stand.saver.drain()
    stand.between.link.bytes_per_second = 0.0
    stand.between.faults = [Fault(Kind.HOLD, "PUT", contains="/1-2/state-")]
    stand.begin(2)
    threading.Timer(0.2, stand.between.let_go.set).start()
    assert stand.rescue(3, notice=2.3).reason == "NoticeTooShort", "the last one took 2 s, and it would take as long"
    assert stand.steps == [1, 2]


def test_a_state_that_is_on_its_way_is_waited_for(stand: Stand) -> None:
    stand.between.link.bytes_per_second = SIZE
    stand.begin(2)
    assert stand.rescue(2) == Rescued(Saved.NEW)
    assert len([path for method, path in stand.between.seen if method == "PUT" and "/1-2/state-" in path]) == 1


def test_a_state_that_was_saved_already_is_not_saved_again(stand: Stand) -> None:
    stand.saver.offer(snapshot(2), SaveReason.PERIODIC)
    stand.saver.drain()
    assert stand.rescue(2) == Rescued(Saved.DURABLE)
    assert stand.steps == [2]


def test_an_older_save_that_hangs_in_its_swap_does_not_hold_up_the_newer(stand: Stand) -> None:
    stand.between.faults = [Fault(Kind.HOLD, "PUT", layout.HEAD, body=b'"step":2')]
    stand.saver.offer(snapshot(2), SaveReason.PERIODIC)
    eventually(lambda: stand.between.happened, 20, "its swap hangs")
    assert stand.rescue(3) == Rescued(Saved.NEW)
    stand.between.let_go.set()
    stand.saver.drain()
    assert stand.steps == [3]


def test_a_device_that_does_not_answer_leaves_what_lies_in_host_memory(stand: Stand) -> None:
    hangs = threading.Event()
    stand.between.link.bytes_per_second = SIZE
    stand.begin(2)
    stand.saver.offer(snapshot(4), SaveReason.PERIODIC)

    def take() -> Snapshot:
        hangs.wait(60)
        return snapshot(5)

    stand.take = take
    stand.ending.standing.step = 5
    saved, message, _ = stand.saver.rescue(time.monotonic() + 8.0)
    hangs.set()
    assert saved is Saved.NEW
    assert "did not hand over the newest state" in message
    assert stand.steps[-1] == 4
    assert stand.ending.standing.step == 5, "what was done is still told"


def test_a_device_that_does_not_answer_with_nothing_in_host_memory(stand: Stand) -> None:
    hangs = threading.Event()

    def take() -> Snapshot:
        hangs.wait(60)
        return snapshot(5)

    stand.take = take
    with pytest.raises(Failure, match="did not hand over") as raised:
        stand.saver.rescue(time.monotonic() + 4.0)
    hangs.set()
    assert raised.value.reason == "DeviceSilent"


def test_a_copy_that_fails_is_not_taken_for_one_that_hangs(stand: Stand) -> None:
    def take() -> Snapshot:
        raise RuntimeError("CUDA error")

    stand.take = take
    with pytest.raises(RuntimeError, match="CUDA error"):
        stand.saver.rescue(time.monotonic() + 4.0)


def test_what_belongs_to_a_step_is_durable_before_the_step_counts(stand: Stand) -> None:
    seen: list[list[int]] = []
    stand.beside = lambda step, deadline: seen.append(stand.steps)
    for step in (2, 4):
        stand.saver.offer(snapshot(step), SaveReason.PERIODIC)
        stand.saver.drain()
    assert seen == [[], [2]]
    assert stand.rescue(5).saved is Saved.NEW
    assert seen == [[], [2], [2, 4]]
    assert [step for step, _ in stand.calls] == [2, 4, 5]
    assert [deadline is None for _, deadline in stand.calls] == [True, True, False]


def test_a_failure_of_what_belongs_to_a_step_is_a_failed_save(stand: Stand, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(step: int, deadline: float | None) -> None:
        if step == 2:
            raise errors.Unreachable("the metrics cannot be put")

    stand.beside = fails
    stand.saver.offer(snapshot(2), SaveReason.PERIODIC)
    stand.saver.drain()
    assert stand.steps == []
    notes = [json.loads(line).get("note", "") for line in capsys.readouterr().out.splitlines()]
    assert any("the metrics cannot be put" in note for note in notes)
    stand.saver.offer(snapshot(3), SaveReason.PERIODIC)
    stand.saver.drain()
    assert stand.steps == [3]


@pytest.mark.parametrize("paced", [False, True])
def test_what_hangs_beside_a_rescue_does_not_eat_the_notice(paced: bool, stand: Stand) -> None:
    hangs = threading.Event()
    if paced:
        stand.saver.offer(snapshot(1), SaveReason.PERIODIC)
        stand.saver.drain()
    stand.beside = lambda step, deadline: hangs.wait(60) and None
    started = time.monotonic()
    assert stand.rescue(3, notice=2.0).saved is Saved.NEW
    hangs.set()
    assert time.monotonic() - started < 10
    assert stand.steps[-1] == 3


def test_where_time_is_short_the_state_goes_first(stand: Stand) -> None:
    stand.between.link.bytes_per_second = SIZE
    stand.saver.offer(snapshot(1), SaveReason.PERIODIC)
    stand.saver.drain()
    seen: list[list[int]] = []
    stand.beside = lambda step, deadline: seen.append(stand.steps)
    assert stand.rescue(3, notice=2.4).saved is Saved.NEW
    assert seen == [[1, 3]]


def test_a_part_that_takes_longer_than_a_connection_may_is_put(stand: Stand) -> None:
    """A socket's time-out limits each call that sends: a part in one call would never get through a slow link."""
    stand.between.link.bytes_per_second = 2 * MIB
    bucket = Bucket.__new__(Bucket)
    bucket.__dict__.update(stand.saver._checkpoints._urgent.__dict__)
    began = time.monotonic()
    bucket.put("slow", b"x" * (12 * MIB))
    assert time.monotonic() - began > 2.0, "longer than its time-out"
    assert stand.bucket.size("slow") == 12 * MIB


def test_a_put_that_is_given_up_leaves_nothing_and_is_not_tried_again(stand: Stand) -> None:
    sent: list[int] = []

    def watch(count: int) -> None:
        sent.append(count)
        if len(sent) == 3:
            raise GivenUp

    with pytest.raises(GivenUp):
        stand.bucket.put("given-up", b"x" * (8 * MIB), watch=watch)
    assert sent == [MIB] * 3
    with pytest.raises(errors.ObjectMissing):
        stand.bucket.size("given-up")
