"""A run by hand on a real pseudo-terminal: one bar that moves, whole sentences above it, and nothing else."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.trainer.process import LIMIT, Trainers

COLUMNS, ROWS = 90, 24
BAR = re.compile(r"^(\w+): +(\d+)%\|.*\| (\d+)/(\d+) \[[\d:]+(?:<[\d:?]+, +([\d.]+|\?)s/(step|item))?")


class Screen:
    """What a terminal of that width shows of what is written to it."""

    def __init__(self) -> None:
        self.lines = [""]
        self.column = 0

    def write(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[K|.", text, re.DOTALL):
            if piece == "\r":
                self.column = 0
            elif piece == "\n":
                self.lines.append("")
                self.column = 0
            elif piece == "\x1b[K":
                self.lines[-1] = self.lines[-1][: self.column]
            else:
                if self.column == COLUMNS:
                    self.lines.append("")
                    self.column = 0
                line = self.lines[-1].ljust(self.column)
                self.lines[-1] = line[: self.column] + piece + line[self.column + 1 :]
                self.column += 1

    @property
    def bars(self) -> list[int]:
        """Which lines are bars."""
        return [number for number, line in enumerate(self.lines) if BAR.match(line)]


def written(master: int) -> Iterator[str]:
    """Yield what is written to the terminal, each write by itself as far as can be told, until all have closed it."""
    left = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # nobody has it open any more
            return
        *whole, left = re.split(rb"(?=\r\x1b\[K)", left + chunk)
        for piece in whole:
            yield piece.decode()
        if left:
            yield left.decode(errors="ignore")
            left = b""


def test_a_terminal_shows_one_bar(trainers: Trainers, name: str) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    pieces: list[str] = []
    run = trainers.run(name, validation={"prompts": ["a dog"], "everySteps": 3, "inferenceSteps": 1})
    attempt = trainers.start(run.config, [], terminal=Path(os.ttyname(slave)))
    reader = threading.Thread(target=lambda: pieces.extend(written(master)))
    reader.start()
    assert attempt.end() == 0, "".join(pieces)[-2000:]
    os.close(slave)
    reader.join(LIMIT)
    os.close(master)

    screen, seen = Screen(), []
    for piece in pieces:
        screen.write(piece)
        assert screen.bars in ([], [len(screen.lines) - 1]), f"a bar was left behind: {screen.lines}"
        seen += [BAR.match(screen.lines[number]) for number in screen.bars]
    bars = [one for one in seen if one is not None]
    assert {"Conditioning", "Training", "Validating"} <= {one[1] for one in bars}
    training = [one for one in bars if one[1] == "Training" and one[5] not in (None, "?")]
    assert training, [one[0] for one in bars]
    assert {one[4] for one in training} == {"6"}
    assert any("loss " in one.string for one in training)
    assert [one[3] for one in bars if one[1] == "Validating"][-1] == "1"
    assert not screen.bars, "the bar stays behind the end"
    assert any(line == "checkpoint at step 2" for line in screen.lines)
    assert any(line.startswith("finished at step 6: the LoRA is at s3://") for line in screen.lines)
    assert not [line for line in screen.lines if line.startswith("{")]


def test_ctrl_c_on_a_terminal(trainers: Trainers, name: str) -> None:
    master, slave = os.openpty()
    pieces: list[str] = []
    run = trainers.run(name, training={"steps": 5000}, checkpoint={"everySteps": 5000})
    attempt = trainers.start(run.config, [], terminal=Path(os.ttyname(slave)))
    reader = threading.Thread(target=lambda: pieces.extend(written(master)))
    reader.start()
    deadline = time.monotonic() + LIMIT
    while not any("loss" in piece for piece in pieces):
        assert time.monotonic() < deadline, "".join(pieces)[-2000:]
        time.sleep(0.01)
    attempt.kill(signal.SIGINT)
    assert attempt.end() == 75
    os.close(slave)
    reader.join(LIMIT)
    os.close(master)

    screen = Screen()
    for piece in pieces:
        screen.write(piece)
    assert run.head.newest is not None
    step = run.head.newest.step
    shown = [line for line in screen.lines if line]
    plan = [line for line in shown if line.startswith("Ctrl-C: ")]
    assert len(plan) == 1
    assert re.match(rf"Ctrl-C: (saving step ({step}|{step - 1}), within |step {step} is saved)", plan[0])
    assert shown[-1] == f"step {step} is saved: run the same command to go on from there"
