"""Programs that the demo runs beside itself: read line by line or waited for, and ended with it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from examples.demo.error import DemoError

END_SECONDS = 5.0


class Child:
    """One program. Leaving it ends it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        errors: Path | None = None,
        folder: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """*on_line* gets each line of its output, in a thread; without it, output goes to *errors* too."""
        self._command, self._errors, self._folder = list(command), errors, folder
        self._on_line = on_line
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        errors = self._errors.open("a") if self._errors else None
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=errors or subprocess.DEVNULL, text=True,
                stdout=subprocess.PIPE if self._on_line else errors or subprocess.DEVNULL,
                cwd=self._folder,
            )  # fmt: skip
        finally:
            if errors:
                errors.close()
        if self._on_line:
            self._reader = threading.Thread(target=self._read, args=(self._process, self._on_line), daemon=True)
            self._reader.start()
        return self

    def _read(self, process: subprocess.Popen[str], on_line: Callable[[str], None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            on_line(line)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader:
            self._reader.join(END_SECONDS)
        if process.stdout:
            process.stdout.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float, complaint: str) -> int:
        """Wait for its end and return its exit code. Raises DemoError with *complaint* after *seconds*."""
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise DemoError(complaint) from error
        if self._reader:
            self._reader.join(END_SECONDS)
        return code
