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
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
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
AGAIN_SECONDS: Final = 1.0
"""A Ctrl-C counts as a second one only so long after the first signal: tools in between pass one on twice."""
SAY_SECONDS: Final = 0.5
"""How long an output that may be stuck is waited for at the end."""


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
                exit_code=int(failure.code),
            )
        flush = 0.0 if failure.code is ExitCode.FENCED else FLUSH_SECONDS  # nobody listens to a fenced attempt
        self._exit(failure.code, reason=failure.reason, message=failure.message, flush=flush)

    def hold(self) -> None:
        """Stay here for ever once SIGTERM was heard: the training thread must not take the rescue's processor."""
        if self.noticed.is_set():
            _wait_for_ever()

    def _listen(self) -> None:
        heard = signals.wait()
        began = time.monotonic()
        self._heard_in = self.standing.phase
        left = self.notice_seconds - min(2.0, 0.1 * self.notice_seconds)
        deadline = began + left
        self.noticed.set()
        # Whatever gets stuck (an output that nobody reads, a library), SIGKILL finds nobody.
        last = threading.Timer(left, os._exit, (YIELDED,))
        last.daemon = True
        last.start()
        again = threading.Thread(target=self._listen_on, args=(began,), name="ctrl-c", daemon=True)
        if self.grace > 0:
            again.start()
            self._say(lambda: self._plan(heard, deadline))
            time.sleep(min(self.grace, 0.4 * self.notice_seconds))  # the main thread ends the process within it
            self.grace = 0.0
        if not self._decided.acquire(blocking=False):  # the main thread was faster, and has until the deadline
            _wait_for_ever()
        self._yield(deadline, heard, again)

    def _listen_on(self, began: float) -> None:
        """End the process at once when a person presses Ctrl-C again: what has been committed is not touched by it."""
        while signals.wait() is not signal.SIGINT or time.monotonic() - began < AGAIN_SECONDS:
            pass
        step, durable = self.standing.step, self.standing.durable_step
        saved = f"step {durable} is saved: run the same command to go on from there" if durable else "nothing is saved"
        message = f"ended at once by a second Ctrl-C; {saved}"
        self._write_last_words(YIELDED, reason="", message=message, saved="new" if 0 < step <= durable else "none")
        self._say(lambda: message).join(SAY_SECONDS)
        _within(SAY_SECONDS, self._clear)
        os._exit(YIELDED)

    def _plan(self, heard: signal.Signals, deadline: float) -> str:
        """Return what is being done about the signal *heard*, for people."""
        step, durable, left = self.standing.step, self.standing.durable_step, deadline - time.monotonic()
        if self.grace > 0:
            words = f"the LoRA is about to be published; it is waited for {min(self.grace, left):.0f} s"
        elif step <= durable:
            words = f"step {durable} is saved already" if durable else "ending"  # the last sentence says the rest
        else:
            words = f"saving step {step}, within {left:.0f} s"
        if heard is not signal.SIGINT:
            return f"{heard.name}: {words}"
        kept = f"with step {durable}, the newest that is saved" if durable else "with nothing saved"
        return f"Ctrl-C: {words}" + (f"; press Ctrl-C again to end at once {kept}" if step > durable else "")

    def _say(self, words: Callable[[], str]) -> threading.Thread:
        """Print a sentence in a thread of its own: the output may be stuck, and nothing here waits for it."""

        def say() -> None:
            if self.reporter is not None:
                self.reporter.note(words())
            else:
                print(words(), file=sys.stderr, flush=True)

        thread = threading.Thread(target=say, name="say", daemon=True)
        thread.start()
        return thread

    def _yield(self, deadline: float, heard: signal.Signals, again: threading.Thread) -> NoReturn:
        from lorafinetune.contract.event import EventType, Saved
        from lorafinetune.contract.exit_codes import ExitCode
        from lorafinetune_trainer.failure import Failure, explain

        result: list[Rescued | Failure] = []

        def save(rescue: Callable[[float], Rescued]) -> None:
            try:
                result.append(rescue(deadline - 1.0))
            except BaseException as error:  # whatever it is, the process ends in order
                result.append(explain(error))

        rescue, worker = self.rescue, None
        if rescue is not None:
            worker = threading.Thread(target=save, args=(rescue,), name="rescue", daemon=True)
            worker.start()
        # What is for people comes after the saving has begun: each thread's start may take a turn of the interpreter.
        if not again.is_alive():
            again.start()
        said = self._say(lambda: self._plan(heard, deadline))
        if worker is not None:
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
        said.join(SAY_SECONDS)
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

    def _write_last_words(self, code: int, *, reason: str, message: str, saved: Saved | str | None) -> None:
        words = {
            "exitCode": int(code),
            "step": self.standing.step,
            "durableStep": self.standing.durable_step,
            "phase": self._heard_in or self.standing.phase or FIRST_PHASE,
            "saved": saved,
            "reason": reason,
            "message": message,
        }
        if self.termination_log is not None:
            try:
                self.termination_log.write_bytes(
                    fitted({name: value for name, value in words.items() if value is not None})
                )
            except OSError as error:
                print(f"the termination message cannot be written: {error}", file=sys.stderr)

    def _exit(self, code: int, *, reason: str, message: str, saved: Saved | None = None, flush: float) -> NoReturn:
        self._write_last_words(code, reason=reason, message=message, saved=saved)
        if self.reporter is not None:
            self.reporter.flush(flush)
        self._clear()
        _within(SAY_SECONDS, _flush)
        # Not sys.exit: threads of torch and a main thread inside one long call would hold the process up.
        os._exit(int(code))

    def _clear(self) -> None:
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


def fitted(words: Mapping[str, object]) -> bytes:
    """Return *words* as JSON that Kubernetes will not cut, in UTF-8: the message is shortened as far as it must be."""
    text = str(words["message"])
    while True:
        body = json.dumps({**words, "message": text}, ensure_ascii=False).encode(errors="replace")
        if len(body) <= MAX_TERMINATION_BYTES or not text:
            return body
        # A character takes up to 6 bytes; what is cut is never more than must go, but for a few of them.
        text = text[: -max(1, (len(body) - MAX_TERMINATION_BYTES) // 6)]


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Do *work* in a thread of its own, and wait for it no longer than *seconds*."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _wait_for_ever() -> NoReturn:
    while True:
        time.sleep(3600)
