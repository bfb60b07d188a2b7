"""Events on their way out: lines on the standard output, and authenticated messages to the operator.

Training never waits for a message and never fails because of one. One thread sends; the queue is bounded, the latest
progress replaces one that has not been sent, and what happened only once (checkpoint, end) is kept before progress.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import shutil
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from lorafinetune.contract import canonical
from lorafinetune.contract.event import EVENTS_PATH, MAX_MESSAGE, Event, EventType, Phase
from lorafinetune.contract.runconfig import Webhook
from lorafinetune_trainer.telling import progressbar
from lorafinetune_trainer.telling.output import Output

TIMEOUT: Final = 2.0
"""Seconds for each step of one request."""
MAX_PAUSE: Final = 30.0
QUEUE: Final = 64
MAX_ANSWER_BYTES: Final = 4096
PROGRESS_INTERVAL: Final = 1.0
"""Seconds between two progress events."""
PRINT_SECONDS: Final = 1.0
"""How long the last lines wait for an output that is stuck."""


class Reporter:
    """Numbers, prints and sends the events of one attempt."""

    def __init__(
        self,
        *,
        run_uid: str,
        attempt: int,
        webhook: Webhook | None,
        on_stop: Callable[[str, str], None],
        readable: bool | None = None,
    ) -> None:
        """*on_stop* is called, from the sending thread, with reason and message when the receiver says stop."""
        self._run_uid = run_uid
        self._attempt = attempt
        self._webhook = webhook
        self._on_stop = on_stop
        self._readable = webhook is None and sys.stdout.isatty() if readable is None else readable
        self._queue: deque[Event] = deque()
        self._change = threading.Condition()
        self._sequence = 0
        self._hurry = False
        self._last_progress = float("-inf")
        self._bar = ""
        self._story = ""
        self._durable = 0
        self._output = Output(self._left_out)
        self._began = self._entered = time.monotonic()
        self._phase: Phase | None = None
        self._last_note = ""
        self.total_steps: int | None = None
        """Optimizer steps of the run, once they are known: told with every start and progress."""
        if webhook is not None:
            try:
                parts = urlsplit(webhook.url)
                if parts.scheme != "https" or not parts.hostname:
                    raise ValueError(f"webhook.url must be https://host:port, not {webhook.url!r}")
                self._host, self._port, self._base = parts.hostname, parts.port or 443, parts.path.rstrip("/")
                self._tls = ssl.create_default_context(cadata=webhook.ca)
            except (ValueError, ssl.SSLError) as error:  # no reason to stop the training
                self._webhook = None
                self.note(f"no event will be sent: webhook.url or webhook.ca is wrong: {error}")
                return
            threading.Thread(target=self._send_all, name="reporter", daemon=True).start()

    def tell(self, type_: EventType, step: int, **members: Any) -> None:
        """Print an event and queue it for sending; returns at once. Frequent progress is thinned out."""
        now = time.monotonic()
        if type_ is EventType.PROGRESS and members.get("phase") is Phase.TRAINING and "loss" in members:
            if now - self._last_progress < PROGRESS_INTERVAL:
                return
            self._last_progress = now
        if type_ in (EventType.STARTED, EventType.PROGRESS):
            members["total_steps"] = self.total_steps
        members["message"] = str(members.get("message", ""))[:MAX_MESSAGE]
        with self._change:
            # The number is given when the event enters: one that is replaced unsent takes its number with it, and a
            # gap is harmless, while a number given at sending could let a repeat pass for something new.
            self._sequence += 1
            event = Event(
                type=type_,
                run_uid=self._run_uid,
                attempt=self._attempt,
                sequence=self._sequence,
                step=step,
                time=time.time(),
                **members,
            )
            self._print(event)
            if self._webhook is not None:
                self._enqueue(event)
                self._change.notify_all()

    def note(self, message: str) -> None:
        """Print a remark that is no event."""
        with self._change:
            self._write({"note": message}, message)

    def flush(self, seconds: float) -> bool:
        """Wait until all is sent, at most *seconds*, and for a moment until all is printed; return whether it was."""
        deadline = time.monotonic() + seconds
        with self._change:
            self._hurry = True
            self._change.notify_all()
            while self._queue and (left := deadline - time.monotonic()) > 0:
                self._change.wait(left)
            sent = not self._queue
        return self._output.flush(PRINT_SECONDS) and sent

    def _enqueue(self, event: Event) -> None:
        if event.type is EventType.PROGRESS and len(self._queue) > 1 and self._queue[-1].type is EventType.PROGRESS:
            self._queue.pop()  # never the first: it may be on its way
        if len(self._queue) >= QUEUE:
            oldest = next((one for one in list(self._queue)[1:] if one.type is EventType.PROGRESS), self._queue[1])
            self._queue.remove(oldest)
        self._queue.append(event)

    def _send_all(self) -> None:
        pause = 0.25
        while True:
            with self._change:
                while not self._queue:
                    self._change.wait()
                event = self._queue[0]
            retry_after = self._send(event)
            with self._change:
                if retry_after is None:
                    self._queue.popleft()
                    pause = 0.25
                    self._change.notify_all()
                else:
                    self._rest(min(max(pause * random.uniform(0.5, 1.0), retry_after), MAX_PAUSE))
                    pause = min(pause * 2, MAX_PAUSE)

    def _rest(self, seconds: float) -> None:
        """Wait before the next try; shorter when the process is about to end."""
        started = time.monotonic()
        while (left := started + (min(seconds, 0.5) if self._hurry else seconds) - time.monotonic()) > 0:
            self._change.wait(left)

    def _send(self, event: Event) -> float | None:
        """Send one event; None = done with it, else the least number of seconds to wait before trying again."""
        try:
            status, answer, retry_after = self._post(canonical.encode(event.to_json()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._note_once(f"an event could not be sent and will be sent again: {error!r}")
            return 0.0
        if status in (200, 202, 204):
            self._last_note = ""
            return None
        if status == 409:
            self._on_stop("Fenced", answer or "the operator says that another attempt holds the run")
            return None
        if status == 404:
            self._on_stop("RunGone", answer or "the operator says that the run is gone")
            return None
        if status in (400, 413, 415, 422):
            self.note(f"the receiver refuses an event of type {event.type} ({status}): {answer}")
            return None
        self._note_once(f"the receiver answered {status} to an event, which will be sent again: {answer}")
        return retry_after

    def _note_once(self, message: str) -> None:
        """Print a remark unless it was the last one: a receiver that is down for hours fills no log."""
        if message != self._last_note:
            self._last_note = message
            self.note(message)

    def _post(self, body: bytes) -> tuple[int, str, float]:
        assert self._webhook is not None
        token = Path(self._webhook.token).read_text().strip()
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT, context=self._tls)
        with contextlib.closing(connection):
            connection.request(
                "POST",
                self._base + EVENTS_PATH,
                body=body,
                headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
            )
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER_BYTES).decode(errors="replace")
            wait = answer.headers.get("Retry-After", "0")
            return answer.status, _message_of(text), float(wait) if wait.isdigit() else 0.0

    def _print(self, event: Event) -> None:
        if event.type in (EventType.STARTED, EventType.CHECKPOINT):
            self._durable = event.step
        text = progressbar.sentence(event, durable=self._durable)
        if event.type is EventType.STARTED:
            self._story = event.message
        elif text and text == self._story:
            text = ""  # when the training begins it is told again
        self._write(event.to_json(), text, event)

    def _write(self, members: dict[str, Any], text: str, event: Event | None = None) -> None:
        """Print a JSON line; on a terminal a sentence above the one bar, or the bar itself."""
        if not self._readable:
            line = json.dumps(members, sort_keys=True) + "\n"
        else:
            line = progressbar.CLEAR if self._bar else ""
            if event is not None:
                self._redraw(event)
            line += (f"{text}\n" if text else "") + self._bar
        if line:
            self._output.write(line)

    def _left_out(self, count: int) -> str:
        words = f"{count} messages were left out here: nobody read them"
        return f"{progressbar.CLEAR}{words}\n" if self._readable else json.dumps({"note": words}) + "\n"

    def _redraw(self, event: Event) -> None:
        now = time.monotonic()
        if event.phase is not self._phase:
            self._phase, self._entered = event.phase, now
        if event.type is EventType.CHECKPOINT:
            return  # the bar stays as it was
        self._bar = progressbar.bar(
            event,
            elapsed=now - self._began,
            in_phase=now - self._entered,
            columns=shutil.get_terminal_size().columns,
            plain=not (sys.stdout.encoding or "").lower().startswith("utf"),
        )


def _message_of(text: str) -> str:
    """Return the message of a Kubernetes Status, or the text itself."""
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(text).get("message", text))[:500]
    return text[:500]
