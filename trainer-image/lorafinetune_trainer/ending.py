"""How the process ends: decided once, by one thread, and told in the exit code and the termination message.

Once SIGTERM (or Ctrl-C) is heard, the thread that heard it alone decides: it saves what there is to save, within the
notice, and ends the process with the code ``yielded``. What the main thread raises meanwhile, while the platform tears
down around it, is printed and no more. Importable at once: everything heavy is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from lorafinetune_trainer import signals

if TYPE_CHECKING:
    from lorafinetune.contract.event import Phase, Saved
    from lorafinetune_trainer.failure import Failure
    from lorafinetune_trainer.telling.report import Reporter

MAX_TERMINATION_BYTES: Final = 4096
"""Kubernetes cuts termination messages there."""
DEFAULT_NOTICE: Final = 25.0
YIELDED: Final = 75
"""The contract's code, known here before the contract has been imported."""
FIRST_PHASE: Final = "Starting"
"""The contract's word, known here before the contract has been imported."""
FLUSH_SECONDS: Final = 5.0
"""Time that the last event has to reach the operator."""


class Rescued(NamedTuple):
    """What the rescue did, in the word of the contract, and in a sentence where there is more to say."""

    saved: Saved
    message: str = ""
    reason: str = ""


@dataclass(slots=True)
class Standing:
    """Where the attempt stands; written by one thread at a time, read by all."""

    phase: Phase | None = None
    step: int = 0
    durable_step: int = 0


@dataclass(slots=True)
class Ending:
    """The one end of the process."""

    standing: Standing = field(default_factory=Standing)
    termination_log: Path | None = None
    notice_seconds: float = DEFAULT_NOTICE
    reporter: Reporter | None = None
    scratch: Path | None = None
    """A temporary folder of the process, removed when it ends."""
    rescue: Callable[[float], Rescued] | None = None
    """Saves the newest step before the given monotonic time, or raises; set once there is a state to save."""
    noticed: threading.Event = field(default_factory=threading.Event)
    """Set once SIGTERM or Ctrl-C has been heard."""
    grace: float = 0.0
    """Seconds that the main thread is given after SIGTERM to end by itself: it is about to publish the artifact."""
    _heard_in: Phase | None = None
    """The phase in which SIGTERM was heard: the main thread may enter another while the process ends."""
    _decided: threading.Lock = field(default_factory=threading.Lock)

    def watch(self) -> None:
        """Listen for signals in a thread of its own, for as long as the process lives."""
        threading.Thread(target=self._listen, name="ending", daemon=True).start()

    def finish(self, code: int, *, reason: str = "", message: str = "", saved: Saved | None = None) -> NoReturn:
        """End the process now, from any thread, unless its end has been decided: then wait for that."""
        if (self.noticed.is_set() and self.grace <= 0) or not self._decided.acquire(blocking=False):
            _wait_for_ever()
        self._exit(code, reason=reason, message=message, saved=saved, flush=FLUSH_SECONDS)

    def fail(self, failure: Failure) -> NoReturn:
        """Tell and end with *failure*, from any thread, unless SIGTERM was heard: then it is only printed."""
        from lorafinetune.contract.event import EventType
        from lorafinetune.contract.exit_codes import ExitCode

        if self.noticed.is_set() or not self._decided.acquire(blocking=False):
            if self.reporter is not None:
                self.reporter.note(f"{failure.reason} while the process ends: {failure.message}")
            _wait_for_ever()
        if self.reporter is not None and failure.code is not ExitCode.FENCED:
            self.reporter.tell(
                EventType.FAILED,
                self.standing.step,
                phase=self.standing.phase,
                reason=failure.reason,
                message=failure.message,
            )
        flush = 0.0 if failure.code is ExitCode.FENCED else FLUSH_SECONDS  # nobody listens to a fenced attempt
        self._exit(failure.code, reason=failure.reason, message=failure.message, flush=flush)

    def hold(self) -> None:
        """Stay here for ever once SIGTERM was heard: the training thread must not take the rescue's processor."""
        if self.noticed.is_set():
            _wait_for_ever()

    def _listen(self) -> None:
        signals.wait()
        self._heard_in = self.standing.phase
        left = self.notice_seconds - min(2.0, 0.1 * self.notice_seconds)
        deadline = time.monotonic() + left
        self.noticed.set()
        # Whatever gets stuck (an output that nobody reads, a library), SIGKILL finds nobody.
        last = threading.Timer(left, os._exit, (YIELDED,))
        last.daemon = True
        last.start()
        if self.grace > 0:
            time.sleep(min(self.grace, 0.4 * self.notice_seconds))  # the main thread ends the process within it
            self.grace = 0.0
        if not self._decided.acquire(blocking=False):  # the main thread was faster, and has until the deadline
            _wait_for_ever()
        self._yield(deadline)

    def _yield(self, deadline: float) -> NoReturn:
        from lorafinetune.contract.event import EventType, Saved
        from lorafinetune.contract.exit_codes import ExitCode
        from lorafinetune_trainer.failure import Failure, explain

        result: list[Rescued | Failure] = []

        def save(rescue: Callable[[float], Rescued]) -> None:
            try:
                result.append(rescue(deadline - 1.0))
            except BaseException as error:  # whatever it is, the process ends in order
                result.append(explain(error))

        rescue = self.rescue
        if rescue is not None:
            worker = threading.Thread(target=save, args=(rescue,), name="rescue", daemon=True)
            worker.start()
            worker.join(max(0.0, deadline - 1.0 - time.monotonic()))
        code, reason, message = ExitCode.YIELDED, "", ""
        saved = Saved.NONE
        end = result[0] if result else None
        if isinstance(end, Failure):
            reason, message = end.reason, f"the last step could not be saved: {end.message}"
            if end.code is ExitCode.FENCED:
                code, message = ExitCode.FENCED, end.message
        elif end is not None:
            saved, message, reason = end
        elif 0 < self.standing.step <= self.standing.durable_step:  # saved, and then stuck in telling it
            saved = Saved.NEW
        elif rescue is not None:
            reason, message = "NoticeTooShort", "the last step could not be saved within the notice"
        else:
            message = "there was nothing to save yet"
        self._write_last_words(code, reason=reason, message=message, saved=saved)
        if self.reporter is not None and code is ExitCode.YIELDED:
            self.reporter.tell(
                EventType.YIELDED,
                self.standing.step,
                phase=self._heard_in,
                saved=saved,
                reason=reason or None,
                message=message,
            )
        self._exit(code, reason=reason, message=message, saved=saved, flush=FLUSH_SECONDS)

    def _write_last_words(self, code: int, *, reason: str, message: str, saved: Saved | None) -> None:
        words = {
            "exitCode": int(code),
            "step": self.standing.step,
            "durableStep": self.standing.durable_step,
            "phase": self._heard_in or self.standing.phase or FIRST_PHASE,
            "saved": saved,
            "reason": reason,
            "message": message,
        }
        words = {name: value for name, value in words.items() if value is not None}
        # Half a JSON object would be none: the message gives way. A letter may take twelve bytes.
        while len(text := json.dumps(words)) > MAX_TERMINATION_BYTES and message:
            words["message"] = message = message[:-32]
        if self.termination_log is not None:
            try:
                self.termination_log.write_text(text)
            except OSError as error:
                print(f"the termination message cannot be written: {error}", file=sys.stderr)

    def _exit(self, code: int, *, reason: str, message: str, saved: Saved | None = None, flush: float) -> NoReturn:
        self._write_last_words(code, reason=reason, message=message, saved=saved)
        if self.reporter is not None:
            self.reporter.flush(flush)
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: threads of torch and a main thread inside one long call would hold the process up.
        os._exit(int(code))


def _wait_for_ever() -> NoReturn:
    while True:
        time.sleep(3600)
