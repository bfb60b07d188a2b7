"""The end of a trainer: its last words, which Kubernetes cuts at 4 KiB, and what a person hears who presses Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafinetune.contract.event import MAX_MESSAGE, Termination
from lorafinetune_trainer.ending import MAX_TERMINATION_BYTES, fitted


@pytest.mark.parametrize("letter", ["a", "\\", "\n", "\x01", "é", "写", "😀", "\udcff"])
def test_last_words_of_any_script_stay_readable(letter: str) -> None:
    body = fitted({"exitCode": 78, "reason": "UndecodableImage", "message": "begin " + letter * (MAX_MESSAGE - 6)})
    assert len(body) <= MAX_TERMINATION_BYTES
    read = Termination.model_validate_json(body)
    assert (read.exit_code, read.reason) == (78, "UndecodableImage")
    assert read.message.startswith("begin ")
    assert len(read.message) > MAX_TERMINATION_BYTES // 6 - 50


STANDS = """
import sys, threading, time
from lorafinetune_trainer import signals
signals.install()
from pathlib import Path
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.telling.report import Reporter
ending = Ending(notice_seconds=300, termination_log=Path(sys.argv[1]))
ending.reporter = Reporter(run_uid="uid", attempt=1, webhook=None, on_stop=lambda *_: None, readable=True)
ending.standing.step, ending.standing.durable_step = 23, 20
ending.rescue = lambda deadline: threading.Event().wait()  # a save that takes for ever
ending.watch()
ending.reporter.note("ready")
time.sleep(600)
"""
"""A trainer at step 23 that cannot save it."""
LIMIT = 60.0


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return tmp_path / "termination"


@pytest.fixture
def trainer(words: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", STANDS, str(words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        yield process
        process.kill()


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode()


def press_until_it_ends(process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + LIMIT
    while process.poll() is None:
        assert time.monotonic() < deadline, "a second Ctrl-C ends nothing"
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    return process.returncode


def test_ctrl_c_says_at_once_what_is_saved_and_a_second_one_ends_at_once(
    trainer: subprocess.Popen[bytes], words: Path
) -> None:
    assert line(trainer) == "ready\n"
    trainer.send_signal(signal.SIGINT)
    said = line(trainer)
    assert said.startswith("Ctrl-C: saving step 23, within ")
    assert said.endswith("; press Ctrl-C again to end at once with step 20, the newest that is saved\n")
    assert press_until_it_ends(trainer) == 75
    assert line(trainer) == (
        "ended at once by a second Ctrl-C; step 20 is saved: run the same command to go on from there\n"
    )
    read = Termination.model_validate_json(words.read_text())
    assert (read.exit_code, read.step, read.durable_step, read.saved) == (75, 23, 20, "none")


def test_a_second_sigterm_ends_nothing(trainer: subprocess.Popen[bytes]) -> None:
    """Platforms repeat it."""
    assert line(trainer) == "ready\n"
    trainer.send_signal(signal.SIGTERM)
    assert line(trainer).startswith("SIGTERM: saving step 23, within ")
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        trainer.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert trainer.poll() is None


def test_a_second_ctrl_c_ends_at_once_where_nobody_reads(trainer: subprocess.Popen[bytes], words: Path) -> None:
    assert line(trainer) == "ready\n"
    assert trainer.stdout is not None
    filler = os.open(f"/proc/{trainer.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(filler, b"x" * 512)
    os.close(filler)
    assert press_until_it_ends(trainer) == 75
    assert Termination.model_validate_json(words.read_text()).durable_step == 20


EARLY = """
import sys, time
from lorafinetune_trainer import signals
signals.install()
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.telling.report import Reporter
ending = Ending(notice_seconds=300)
ending.reporter = Reporter(run_uid="uid", attempt=1, webhook=None, on_stop=lambda *_: None, readable=True)
ending.watch()
ending.reporter.note("ready")
time.sleep(600)
"""
"""A trainer before its first step."""


def test_ctrl_c_before_the_first_step_says_once_that_there_is_nothing_to_save() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", EARLY], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 75
    assert said.splitlines() == ["Ctrl-C: ending", "there was nothing to save yet: run the same command again"]
