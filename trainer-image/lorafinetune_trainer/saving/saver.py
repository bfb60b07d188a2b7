"""Checkpoints off the training thread: one worker, the newest pending snapshot wins; and the rescue at SIGTERM."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from lorafinetune.contract.event import EventType, Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.storage import errors
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure, explain
from lorafinetune_trainer.saving.checkpoints import Checkpoints, Snapshot
from lorafinetune_trainer.telling.report import Reporter

MAX_FAILED_SAVES: Final = 3
"""Saves that may fail in a row before the attempt ends: work that cannot be kept is not worth paying for."""
MAX_FAILED_FINAL_SAVES: Final = 6
"""The same for the last one, when there is no more work to pay for."""
MAX_PAUSE: Final = 30.0
WAIT_SHARE: Final = 0.4
"""Share of the notice for which the rescue waits for a save of its step that is under way."""


class Saver:
    """Commits snapshots in a thread of its own."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        take: Callable[[], Snapshot],
        ending: Ending,
        reporter: Reporter,
        beside: Callable[[int, float | None], None] | None = None,
    ) -> None:
        """*take* returns a snapshot of the newest step, from any thread, without waiting for the running step.

        *beside* is called with a step, and a deadline if there is one, before a checkpoint of that step may count: what
        it makes durable is there in every attempt that resumes from it.
        """
        self._checkpoints = checkpoints
        self._take = take
        self._ending = ending
        self._reporter = reporter
        self._beside = beside
        self._change = threading.Condition()
        self._pending: tuple[Snapshot, SaveReason] | None = None
        self._saving: int | None = None
        self._failed = 0
        threading.Thread(target=self._work, name="saver", daemon=True).start()

    def offer(self, snapshot: Snapshot, reason: SaveReason) -> None:
        """Hand over a snapshot; one that was still waiting is dropped for it. Returns at once."""
        with self._change:
            self._pending = (snapshot, reason)
            self._change.notify_all()

    def drain(self) -> None:
        """Wait until nothing is pending and nothing is being saved; a save that keeps failing ends the process."""
        with self._change:
            while self._pending is not None or self._saving is not None:
                self._change.wait()

    def rescue(self, deadline: float) -> Saved:
        """Make the newest step durable before the monotonic time *deadline*; called once, when SIGTERM was heard."""
        with self._change:
            self._pending = None
        snapshot = self._take()
        standing = self._ending.standing
        standing.step = snapshot.step
        if 0 < snapshot.step <= standing.durable_step:
            return Saved.DURABLE
        if snapshot.step == 0:
            return Saved.NONE
        # The step may be on its way already. If that gets stuck, the same bytes are put again under the same names.
        patience = time.monotonic() + WAIT_SHARE * (deadline - time.monotonic())
        with self._change:
            while self._saving == snapshot.step and (left := patience - time.monotonic()) > 0:
                self._change.wait(left)
        if snapshot.step > standing.durable_step:
            self._commit(snapshot, SaveReason.YIELD, deadline)
        return Saved.NEW

    def _work(self) -> None:
        while True:
            with self._change:
                while self._pending is None:
                    self._change.wait()
                snapshot, reason = self._pending
                self._pending, self._saving = None, snapshot.step
            fatal = self._save(snapshot, reason)
            with self._change:
                if fatal is None and self._failed and reason is SaveReason.FINAL and not self._ending.noticed.is_set():
                    self._pending = (snapshot, reason)
                self._saving = None
                self._change.notify_all()
            if fatal is not None:
                self._ending.fail(fatal)

    def _save(self, snapshot: Snapshot, reason: SaveReason) -> Failure | None:
        """Save, and return what ends the attempt, if anything does."""
        try:
            self._commit(snapshot, reason)
        except errors.StorageError as error:
            failure = explain(error)
        except BaseException as error:
            return explain(error)
        else:
            self._failed = 0
            return self._tidy()
        self._failed += 1
        final = reason is SaveReason.FINAL
        if self._failed >= (MAX_FAILED_FINAL_SAVES if final else MAX_FAILED_SAVES):
            message = f"{self._failed} checkpoints in a row could not be saved: {failure.message}"
            return Failure(ExitCode.STORAGE_UNREACHABLE, failure.reason, message)
        self._reporter.note(f"a checkpoint could not be saved, and will be tried again: {failure.message}")
        if final:
            self._ending.noticed.wait(min(2.0**self._failed, MAX_PAUSE))
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

    def _commit(self, snapshot: Snapshot, reason: SaveReason, deadline: float | None = None) -> None:
        if self._beside is not None:
            self._beside(snapshot.step, deadline)
        entry = self._checkpoints.commit(snapshot, reason, deadline=deadline)
        standing = self._ending.standing
        if entry is not None:
            standing.durable_step = max(standing.durable_step, entry.step)
            self._reporter.tell(EventType.CHECKPOINT, entry.step, phase=standing.phase, checkpoint=entry)
