"""Checkpoints off the training thread: one worker, the newest pending snapshot wins; and the rescue at SIGTERM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from lorafinetune.contract.event import EventType, Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.storage import errors
from lorafinetune_trainer.ending import Ending, Rescued
from lorafinetune_trainer.failure import Failure, explain
from lorafinetune_trainer.saving import snapshots
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
from lorafinetune_trainer.saving.uploads import GivenUp, Pace, Upload, size_of
from lorafinetune_trainer.telling.report import Reporter

MAX_FAILED_SAVES: Final = 3
"""Saves that may fail in a row before the attempt ends: work that cannot be kept is not worth paying for."""
MAX_FAILED_FINAL_SAVES: Final = 6
"""The same for the last one, when there is no more work to pay for."""
PATIENCE: Final = 240.0
"""Seconds for which a bucket that does not answer is borne, however many saves fail meanwhile: stores are restarted."""
MAX_PAUSE: Final = 30.0
WAIT_SHARE: Final = 0.4
"""Share of the notice for which the rescue waits for a save of its step that is under way."""
COPY_SECONDS: Final = 5.0
COPY_SHARE: Final = 0.25
"""At SIGTERM the device has so long, and at most this share of the notice, to hand over the newest state."""

Beside = Callable[[int, float | None], None]
"""Makes durable what must be so before a checkpoint of that step may count: given the step, and the monotonic time by
which it must be done (None: no hurry). Called in a saving thread, one call at a time, and again after a failure."""


class _Save(NamedTuple):
    snapshot: Snapshot
    upload: Upload


class Saver:
    """Commits snapshots in a thread of its own."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        take: Callable[[], Snapshot],
        ending: Ending,
        reporter: Reporter,
        beside: Beside | None = None,
    ) -> None:
        """*take* returns a snapshot of the newest step, from any thread, without waiting for the running step.

        What *beside* raises makes the save fail; at a rescue it is only told, for the state is worth more.
        """
        self._checkpoints = checkpoints
        self._take = take
        self._ending = ending
        self._reporter = reporter
        self._beside = beside
        self._one_beside = threading.Lock()
        self._pace = Pace()
        self._change = threading.Condition()
        self._pending: tuple[Snapshot, SaveReason] | None = None
        self._saving: _Save | None = None
        self._failed = 0
        self._failing_since = 0.0
        threading.Thread(target=self._work, name="saver", daemon=True).start()

    def offer(self, snapshot: Snapshot, reason: SaveReason) -> None:
        """Hand over a snapshot; one that was still waiting is dropped for it. Returns at once."""
        with self._change:
            self._pending = (snapshot, reason)
            self._change.notify_all()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is waiting or being saved: what is less urgent leaves it the link."""
        return self._pending is not None or self._saving is not None

    def drain(self) -> None:
        """Wait until nothing is pending and nothing is being saved; a save that keeps failing ends the process."""
        with self._change:
            while self._pending is not None or self._saving is not None:
                self._change.wait()

    def rescue(self, deadline: float) -> Rescued:
        """Make the newest step durable before the monotonic time *deadline*; called once, when SIGTERM was heard."""
        with self._change:
            waiting, self._pending = self._pending, None
            saving = self._saving
        standing = self._ending.standing
        limit = min(COPY_SECONDS, COPY_SHARE * max(0.0, deadline - time.monotonic()))
        snapshot, remark = snapshots.within(limit, self._take), ""
        if snapshot is not None:
            standing.step = snapshot.step
        else:
            snapshot = waiting[0] if waiting is not None else saving.snapshot if saving is not None else None
            silent = f"the device did not hand over the newest state within {limit:.1f} s"
            if snapshot is None:
                raise Failure(ExitCode.FAILED, "DeviceSilent", f"{silent}, and no newer one lay in host memory")
            remark = f"{silent}: step {snapshot.step} was in host memory"
        if snapshot.step == 0:
            return Rescued(Saved.NONE, remark)
        if snapshot.step <= standing.durable_step:
            return Rescued(Saved.DURABLE, remark)
        if saving is not None and saving.snapshot.step > standing.durable_step:
            if saving.snapshot.step == snapshot.step:
                # If that gets stuck, the same bytes are put again under the same names.
                self._wait_for(saving, time.monotonic() + WAIT_SHARE * (deadline - time.monotonic()))
            elif not self._fits(snapshot, saving.upload, deadline):
                self._wait_for(saving, deadline)
                if standing.durable_step >= saving.snapshot.step:
                    older = f"the notice is too short for the upload of step {snapshot.step}: step"
                    older += f" {saving.snapshot.step}, whose upload was under way, was saved"
                    return Rescued(Saved.NEW, older, "NoticeTooShort")
            saving.upload.give_up()
        if snapshot.step > standing.durable_step:
            self._save_urgently(snapshot, deadline)
        return Rescued(Saved.NEW, remark)

    def _wait_for(self, saving: _Save, until: float) -> None:
        """Wait until *saving* has become durable or has failed, or for the monotonic time *until*."""
        standing = self._ending.standing
        with self._change:
            while (
                self._saving is saving
                and standing.durable_step < saving.snapshot.step
                and (left := until - time.monotonic()) > 0
            ):
                self._change.wait(left)

    def _fits(self, snapshot: Snapshot, under_way: Upload | None, deadline: float) -> bool:
        """Whether there is time to save *snapshot* from its first byte. Of an unknown link it is believed."""
        seconds = self._pace.estimate(size_of(snapshot.tensors), under_way)
        return seconds is None or time.monotonic() + seconds <= deadline

    def _save_urgently(self, snapshot: Snapshot, deadline: float) -> None:
        """Save *snapshot*, and beside it what belongs to it: at the same time, or after it where time is short."""
        beside = threading.Thread(target=self._try_beside, args=(snapshot.step, deadline), name="beside", daemon=True)
        seconds = self._pace.estimate(size_of(snapshot.tensors))
        spare = 0.0 if seconds is None else deadline - time.monotonic() - 2 * seconds
        if spare > 0:
            beside.start()
        self._commit(
            snapshot,
            SaveReason.YIELD,
            deadline=deadline,
            before_head=lambda: beside.join(spare / 2) if spare > 0 else None,
        )
        if spare <= 0:
            beside.start()
        beside.join(max(0.0, deadline - time.monotonic()))

    def _try_beside(self, step: int, deadline: float) -> None:
        try:
            self._do_beside(step, deadline)
        except BaseException as error:  # the state is worth more
            self._reporter.note(f"what belongs to step {step} could not be saved: {explain(error).message}")

    def _do_beside(self, step: int, deadline: float | None) -> None:
        if self._beside is None:
            return
        limit = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._one_beside.acquire(timeout=limit):
            raise errors.Unreachable("an earlier save of what belongs to a step has not come to its end")
        try:
            self._beside(step, deadline)
        finally:
            self._one_beside.release()

    def _work(self) -> None:
        while True:
            with self._change:
                while self._pending is None:
                    self._change.wait()
                snapshot, reason = self._pending
                upload = Upload(size_of(snapshot.tensors))
                self._pending, self._saving = None, _Save(snapshot, upload)
            fatal = self._save(snapshot, reason, upload)
            with self._change:
                if fatal is None and self._failed and reason is SaveReason.FINAL and not self._ending.noticed.is_set():
                    self._pending = (snapshot, reason)
                self._saving = None
                self._change.notify_all()
            if fatal is not None:
                self._ending.fail(fatal)

    def _save(self, snapshot: Snapshot, reason: SaveReason, upload: Upload) -> Failure | None:
        """Save, and return what ends the attempt, if anything does."""
        began = time.monotonic()
        try:
            self._commit(snapshot, reason, upload=upload, before_head=lambda: self._do_beside(snapshot.step, None))
        except GivenUp:
            return None
        except errors.OtherVersion as error:
            return explain(error)
        except errors.StorageError as error:
            failure = explain(error)
        except BaseException as error:
            return explain(error)
        else:
            self._failed = 0
            return self._tidy()
        if not self._failed:
            self._failing_since = began
        self._failed += 1
        final = reason is SaveReason.FINAL
        away = failure.code is ExitCode.STORAGE_UNREACHABLE and time.monotonic() - self._failing_since < PATIENCE
        if self._failed >= (MAX_FAILED_FINAL_SAVES if final else MAX_FAILED_SAVES) and not away:
            message = f"{self._failed} checkpoints in a row could not be saved: {failure.message}"
            refused = failure.code is ExitCode.STORAGE_REFUSED
            return Failure(failure.code if refused else ExitCode.STORAGE_UNREACHABLE, failure.reason, message)
        self._reporter.note(f"a checkpoint could not be saved, and will be tried again: {failure.message}")
        if final:
            self._ending.noticed.wait(min(2.0 ** min(self._failed, 16), MAX_PAUSE))
        return None

    def _tidy(self) -> Failure | None:
        """Delete what no longer counts. What cannot be deleted now is tried again after the next checkpoint."""
        try:
            self._checkpoints.tidy()
        except errors.StorageError as error:
            self._reporter.note(f"old checkpoints could not be deleted: {error}")
        except BaseException as error:
            return explain(error)
        return None

    def _commit(
        self,
        snapshot: Snapshot,
        reason: SaveReason,
        *,
        upload: Upload | None = None,
        deadline: float | None = None,
        before_head: Callable[[], None],
    ) -> None:
        upload = upload or Upload(size_of(snapshot.tensors))
        entry = self._checkpoints.commit(snapshot, reason, upload=upload, deadline=deadline, before_head=before_head)
        standing = self._ending.standing
        if entry is not None:
            self._pace.learn(upload)
            with self._change:
                standing.durable_step = max(standing.durable_step, entry.step)
                self._change.notify_all()
            self._reporter.tell(EventType.CHECKPOINT, entry.step, phase=standing.phase, checkpoint=entry)
