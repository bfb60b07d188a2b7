"""An output that nobody reads: a real pipe, filled to the brim. Who says something must not wait for it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Iterator

import pytest

from lorafinetune_trainer.telling.output import MAX_WAITING, Output

LIMIT = 30.0


class Pipe:
    """The standard output as a full pipe."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.filled = 0
        try:
            while True:
                self.filled += os.write(self.writer, b"x" * 512)
        except BlockingIOError:
            pass
        os.set_blocking(self.writer, True)
        self.stream = os.fdopen(self.writer, "w")

    def drain(self) -> None:
        left = self.filled
        while left:
            left -= len(os.read(self.reader, left))

    def line(self) -> str:
        found = b""
        while not found.endswith(b"\n"):
            assert select.select([self.reader], [], [], LIMIT)[0], found
            found += os.read(self.reader, 1)
        return found.decode()


@contextlib.contextmanager
def full() -> Iterator[Pipe]:
    """Put a full pipe in the place of the standard output, while a test runs: pytest has one of its own before."""
    made, real = Pipe(), sys.stdout
    sys.stdout = made.stream
    try:
        yield made
    finally:
        sys.stdout = real
        os.close(made.reader)
        made.stream.close()


def said_by_a_thread(output: Output, pieces: list[str]) -> None:
    """Say all of it, and do not wait for ever."""
    thread = threading.Thread(target=lambda: [output.write(piece) for piece in pieces], daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "who says something is stuck with the output"


def test_nobody_waits_for_an_output_that_is_stuck_and_nothing_is_lost() -> None:
    with full() as pipe:
        output = Output(lambda count: f"({count} left out)\n")
        pieces = [f"piece {number}\n" for number in range(100)]
        said_by_a_thread(output, pieces)
        assert not output.flush(0.01)
        pipe.drain()
        assert [pipe.line() for _ in pieces] == pieces
        assert output.flush(LIMIT)
        output.write("it flows again\n")
        assert pipe.line() == "it flows again\n"


def test_what_waits_is_bounded_and_what_is_left_out_is_told() -> None:
    with full() as pipe:
        output = Output(lambda count: f"({count} left out)\n")
        said_by_a_thread(output, [f"piece {number}\n" for number in range(MAX_WAITING + 50)])
        pipe.drain()
        first = pipe.line()  # the thread had taken it
        told = pipe.line()
        assert (first, told) == ("piece 0\n", "(49 left out)\n")
        assert pipe.line() == "piece 50\n"
        assert output.flush(LIMIT)


def test_what_flows_is_written_when_it_has_been_said(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(str)
    for number in range(20):
        output.write(f"{number}\n")
        assert capsys.readouterr().out == f"{number}\n"
