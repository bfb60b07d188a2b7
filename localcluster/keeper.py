"""Keeps one program: the innermost wall of the promise that localcluster leaves no process behind.

Every program that localcluster starts (etcd, an API server, a node, a container) runs as the child of one keeper. The
keeper's standard input is a pipe whose other end its starter holds; when the pipe closes, for whatever reason (the
starter was killed with SIGKILL, too), the keeper kills the program and everything that came from it. It plays for a
container what PID 1 of a PID namespace is: when the main process ends, the rest is killed.

Standard library only, run as a file with `python -I -S`, so that it starts in milliseconds and in any environment.

Commands on standard input, one a line: `signal N` sends N to the main process only, `kill` sends SIGKILL to all.
Reports on the status descriptor, one JSON object a line: `{"started": {pid, time}}`, `{"failed": {message}}`,
`{"exited": {code, signal, time}}` (code is null where a signal ended it, and the other way round).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import time
from typing import IO

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CRI_LINE_LIMIT = 16 * 1024
LOG_ROTATE_BYTES = 10 * 1024 * 1024
EXEC_FAILED = 126
DRAIN_SECONDS = 1.0
SWEEP_SECONDS = 5.0


def prctl(option: int, value: int) -> None:
    """Set a process attribute where there are such (Linux); elsewhere the pipe alone keeps the promise."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the pids of all living descendants of `root`."""
    parents: dict[int, int] = {}
    proc = pathlib.Path("/proc")
    if (proc / "self" / "stat").exists():
        for entry in proc.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if fields[0] not in ("Z", "X"):
                        parents[int(entry.name)] = int(fields[1])
    else:
        listed = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False)
        parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.stdout.splitlines())}
    found: list[int] = []
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found.extend(frontier)
    return found


class CriLog:
    """Writes container output as a container runtime does: `<RFC 3339 time> <stream> <P|F> <line>`, rotated once."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.file: IO[bytes] = path.open("ab")
        self.pending = {"stdout": b"", "stderr": b""}

    def feed(self, stream: str, data: bytes) -> None:
        """Take a piece of output; whole lines are written at once, an overlong line in parts."""
        *lines, rest = (self.pending[stream] + data).split(b"\n")
        for line in lines:
            self.write(stream, b"F", line)
        while len(rest) > CRI_LINE_LIMIT:
            self.write(stream, b"P", rest[:CRI_LINE_LIMIT])
            rest = rest[CRI_LINE_LIMIT:]
        self.pending[stream] = rest
        self.file.flush()

    def write(self, stream: str, tag: bytes, line: bytes) -> None:
        """Write one log line, and start a new file when this one has grown too large."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        self.file.write(b"%s %s %s %s\n" % (now.encode(), stream.encode(), tag, line))
        if self.file.tell() > LOG_ROTATE_BYTES:
            self.file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self.file = self.path.open("ab")

    def close(self) -> None:
        """Write what stands there without a newline, and close."""
        for stream, rest in self.pending.items():
            if rest:
                self.write(stream, b"F", rest)
        self.file.close()


class Keeper:
    """One program and all that came from it."""

    def __init__(self, command: list[str], status_fd: int, log: CriLog | None) -> None:
        self.command = command
        self.status_fd = status_fd
        self.log = log
        self.main = 0
        self.exit: tuple[int | None, int | None] | None = None
        self.exit_time = 0.0
        self.selector = selectors.DefaultSelector()
        self.open_streams = 0
        self.commands = b""

    def report(self, kind: str, **fields: object) -> None:
        """Tell the starter; one that is gone no longer wants to know."""
        with contextlib.suppress(OSError):
            os.write(self.status_fd, json.dumps({kind: fields}).encode() + b"\n")

    def start(self) -> bool:
        """Start the program in a session of its own; False where it could not be executed."""
        outputs = [os.pipe(), os.pipe()] if self.log else []
        error_read, error_write = os.pipe()
        self.main = os.fork()
        if self.main == 0:
            self.become([write for _, write in outputs], error_write)
        os.close(error_write)
        for (read, write), stream in zip(outputs, ("stdout", "stderr"), strict=False):
            os.close(write)
            self.selector.register(read, selectors.EVENT_READ, stream)
            self.open_streams += 1
        message = os.read(error_read, 4096).decode(errors="replace")  # empty once exec has closed it
        os.close(error_read)
        if message:
            os.waitpid(self.main, 0)
            self.report("failed", message=message)
            return False
        self.report("started", pid=self.main, time=time.time())
        return True

    def become(self, outputs: list[int], error_write: int) -> None:
        """In the child: turn into the program. Never returns."""
        try:
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            if outputs:
                os.dup2(outputs[0], 1)
                os.dup2(outputs[1], 2)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            os.execvp(self.command[0], self.command)
        except BaseException as error:
            os.write(error_write, f"{self.command[0]}: {error}".encode())
        finally:
            os._exit(EXEC_FAILED)

    def run(self) -> int:
        """Keep the program until it ends or the starter is gone; returns the exit status to use."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.send(signal.SIGTERM))
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.selector.register(0, selectors.EVENT_READ, "commands")
        self.selector.register(wake_read, selectors.EVENT_READ, "wake")
        if not self.start():
            return EXEC_FAILED
        while self.exit is None:
            self.step(timeout=None)
            self.reap()
        self.sweep()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.open_streams and time.monotonic() < deadline:
            self.step(timeout=0.05)
        if self.log:
            self.log.close()
        code, ended_by = self.exit
        self.report("exited", code=code, signal=ended_by, time=self.exit_time)
        return code if code is not None else 128 + (ended_by or 0)

    def step(self, timeout: float | None) -> None:
        """Serve whatever is ready: commands, output, ended children."""
        for key, _ in self.selector.select(timeout):
            try:
                data = os.read(key.fd, 65536)
            except BlockingIOError:
                continue
            if key.data == "commands":
                if not data:
                    self.selector.unregister(key.fd)
                    self.kill_all()
                self.obey(data)
            elif key.data != "wake":
                if data and self.log:
                    self.log.feed(key.data, data)
                if not data:
                    self.selector.unregister(key.fd)
                    os.close(key.fd)
                    self.open_streams -= 1

    def obey(self, data: bytes) -> None:
        """Carry out the whole lines among the commands that have come."""
        *lines, self.commands = (self.commands + data).split(b"\n")
        for line in lines:
            word, _, argument = line.decode().partition(" ")
            if word == "kill":
                self.kill_all()
            elif word == "signal":
                self.send(int(argument))

    def send(self, number: int) -> None:
        """Signal the main process; only while it is not yet reaped, so that its pid cannot be another's."""
        if self.main and self.exit is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.main, number)

    def kill_all(self) -> None:
        """SIGKILL to the main process' group and to every descendant, in whatever session it is."""
        if self.main:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.main, signal.SIGKILL)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def reap(self) -> bool:
        """Collect ended children, orphans that came to us included; False once there are none left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.main:
                self.exit_time = time.time()
                code = os.waitstatus_to_exitcode(status)
                self.exit = (code, None) if code >= 0 else (None, -code)

    def sweep(self) -> None:
        """Kill what the main process left behind, and what that starts meanwhile."""
        deadline = time.monotonic() + SWEEP_SECONDS
        while self.reap() and time.monotonic() < deadline:
            self.kill_all()
            time.sleep(0.005)


def main() -> int:
    """Parse the command line and keep the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--status-fd", type=int, required=True, help="descriptor for reports")
    parser.add_argument("--cri-log", type=pathlib.Path, help="write the program's output there, as a runtime does")
    parser.add_argument("--unset", action="append", default=[], help="a variable that the program shall not have")
    parser.add_argument("command", nargs="+", help="the program and its arguments, after --")
    arguments = parser.parse_args()
    os.set_inheritable(arguments.status_fd, False)
    for name in arguments.unset:
        os.environ.pop(name, None)
    log = CriLog(arguments.cri_log) if arguments.cri_log else None
    return Keeper(arguments.command, arguments.status_fd, log).run()


if __name__ == "__main__":
    sys.exit(main())
