"""Trainers as real processes that are sent real signals; started in milliseconds, by forking a preloaded process."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import struct
import subprocess
import sys
import termios
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lorafinetune.contract import layout
from lorafinetune.contract.event import Termination
from lorafinetune.contract.head import Head
from lorafinetune.contract.runconfig import ENV_POD_UID, ENV_RUN_CONFIG, ENV_TERMINATION_LOG, RunConfig
from lorafinetune.storage import head as heads
from lorafinetune.storage.bucket import Bucket
from tests.integration.trainer.s3 import Access

PRELOADED = [
    "tests.integration.trainer.held",
    "torch",
    "accelerate",
    "peft",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_ddpm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "torch._dynamo",
    "boto3",
    "lorafinetune_trainer.saving.saver",
    "lorafinetune_trainer.training.loop",
    "lorafinetune_trainer.product.export",
    "lorafinetune_trainer.main",
    "tests.integration.trainer.preloaded",
]
CONSTANTS = "TEST_CONSTANTS"
"""Variable of a forked trainer's environment: JSON, other values for constants of modules, so that waits are short."""
LIMIT = 90.0
PIPE_BYTES = 4096
STACKS = "stacks"
"""Where an attempt that does not end writes what its threads are at."""

Line = dict[str, Any]


_Result = TypeVar("_Result")


@functools.cache
def forkserver() -> Any:
    """The process that has imported everything, and forks on demand."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def in_preloaded(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call *function* in a child of the preloaded process, so that this one need not import torch."""
    receiver, sender = forkserver().Pipe(duplex=False)
    child = forkserver().Process(target=_call, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        result: _Result = receiver.recv()
    except EOFError:
        raise AssertionError(f"{function.__name__} failed in the child, see above") from None
    finally:
        child.join(LIMIT)
        child.close()
        receiver.close()
    return result


class Stage:
    """A child of the preloaded process that stays, and plays one function after another."""

    def __init__(self) -> None:
        self._pipe, theirs = forkserver().Pipe()
        self._child = forkserver().Process(target=_play, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()

    def call(self, function: Callable[..., _Result], *arguments: Any, **members: Any) -> _Result:
        """Return what *function* returns there; AssertionError with its traceback where it raises."""
        self._pipe.send((function, arguments, members))
        assert self._pipe.poll(LIMIT), f"{function.__name__} does not end"
        answer, failed = self._pipe.recv()
        assert not failed, failed
        result: _Result = answer
        return result

    def close(self) -> None:
        self._pipe.close()
        self._child.kill()
        self._child.join(10)
        self._child.close()


def _play(pipe: Any) -> None:
    with contextlib.suppress(EOFError):
        while True:
            function, arguments, members = pipe.recv()
            try:
                pipe.send((function(*arguments, **members), ""))
            except BaseException:
                pipe.send((None, traceback.format_exc()))


def _call(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


def _become_trainer(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """In the forked child: what ``python -m lorafinetune_trainer`` does, with what it needs imported already."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, of which the trainer takes notice
    stacks = Path(environment["TMPDIR"], STACKS).open("w")  # noqa: SIM115 - for as long as the process lives
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)
    for place, value in json.loads(os.environ.pop(CONSTANTS, "{}")).items():
        module, _, constant = place.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    sys.argv[:] = ["lorafinetune_trainer", *arguments]
    runpy.run_module("lorafinetune_trainer", run_name="__main__")


class Cold:
    """A process started from nothing, with the verbs of one that was forked."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.kill = process.kill

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, limit: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit)

    def close(self) -> None:
        self.join(0)


class Trainer:
    """One attempt as a process."""

    def __init__(self, process: Any, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def lines(self) -> list[Line]:
        """All JSON lines that it has printed so far: events and notes."""
        text = (self.folder / "output").read_text() if (self.folder / "output").exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    @property
    def events(self) -> list[Line]:
        return [line for line in self.lines if "type" in line]

    def of_type(self, type_: str) -> list[Line]:
        return [event for event in self.events if event["type"] == type_]

    def wait_for(self, condition: Callable[[Line], bool]) -> Line:
        """Return the first event that fulfils *condition*, once it has been printed."""
        return self._wait_for(lambda line: "type" in line and condition(line))

    def wait_for_note(self, words: str) -> str:
        """Return the first note that holds *words*, once it has been printed."""
        return str(self._wait_for(lambda line: words in str(line.get("note")))["note"])

    def _wait_for(self, condition: Callable[[Line], bool]) -> Line:
        deadline = time.monotonic() + LIMIT
        while True:
            ended = not self.process.is_alive()
            for line in self.lines:
                if condition(line):
                    return line
            assert not ended, f"ended with {self.process.exitcode} before: {self.tail()}"
            assert time.monotonic() < deadline, f"not within {LIMIT} s: {self.tail()}"
            time.sleep(0.005)

    def wait_for_phase(self, phase: str) -> Line:
        return self.wait_for(lambda event: event.get("phase") == phase)

    def wait_for_checkpoint(self, step: int) -> Line:
        return self.wait_for(lambda event: event["type"] == "checkpoint" and event["step"] >= step)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def end(self, limit: float = LIMIT) -> int:
        """Wait for its end and return its exit code (minus the signal's number where one ended it)."""
        self.process.join(limit)
        assert self.process.exitcode is not None, f"not ended within {limit} s: {self.tail()}\n{self.stacks()}"
        return int(self.process.exitcode)

    @property
    def last_words(self) -> Termination:
        return Termination.model_validate_json((self.folder / "termination").read_text())

    def stacks(self) -> str:
        """What the threads of a living attempt are at, as far as it answers."""
        path = self.folder / STACKS
        if not path.exists():
            return "no stacks: it was started from nothing"
        os.kill(self.process.pid, signal.SIGUSR2)
        time.sleep(1.0)  # it has no way to say that it is done
        return path.read_text()

    def tail(self) -> str:
        path = self.folder / "output"
        if path.is_fifo():
            return "an output that nobody reads"
        return path.read_text()[-3000:] if path.exists() else "no output"


class Run:
    """One run: a config, and its attempts."""

    def __init__(self, trainers: Trainers, config: RunConfig) -> None:
        self._trainers = trainers
        self.config = config
        self.attempts: list[Trainer] = []

    @property
    def bucket(self) -> Bucket:
        """The run's own prefix."""
        return self._trainers.s3.bucket(str(self.config.prefix))

    @property
    def head(self) -> Head:
        found = heads.read(self.bucket).head
        assert found is not None
        return found

    def start(self, *arguments: str, **changes: Any) -> Trainer:
        """Start the next attempt; *changes* replace parts of the config for this attempt only."""
        config = self.config.model_copy(update=changes) if changes else self.config
        attempt = self._trainers.start(config, [*arguments])
        self.attempts.append(attempt)
        return attempt

    def finish(self, **changes: Any) -> Trainer:
        """Start an attempt that must end well."""
        attempt = self.start(**changes)
        assert attempt.end() == 0, attempt.tail()
        return attempt

    def file(self, name: str = layout.LORA) -> bytes:
        """Return a file of the artifact."""
        artifact = self.head.artifact
        assert artifact is not None
        return self.bucket.get(artifact.folder + name).body


class Trainers:
    """Makes runs and starts their attempts."""

    def __init__(self, s3: Access, model: Path, photos: Path, folder: Path) -> None:
        self.s3, self.model, self.photos, self.folder = s3, model, photos, folder
        self._started: list[Any] = []
        self._fifo = -1
        self._numbers: Iterator[int] = iter(range(1, 100_000))

    def run(self, name: str, **changes: Any) -> Run:
        """Return a new run of 6 steps with a checkpoint after every second; *changes* replace parts of its config."""
        config: dict[str, Any] = {
            "run": {"name": name, "uid": f"{name}-0000-uid"},
            "baseModel": {"source": str(self.model)},
            "dataset": {"source": str(self.photos), "instancePrompt": "a photo of sks timber dog"},
            "training": {
                "steps": 6,
                "resolution": 64,
                "precision": "fp32",
                "learningRate": 1e-3,
                "gradientAccumulation": 2,
                "randomFlip": True,
                "lora": {"rank": 4, "alpha": 8},
            },
            "checkpoint": {"everySteps": 2},
            "storage": {
                "uri": "s3://loras/",
                "endpoint": self.s3.endpoint,
                "credentials": str(self.s3.credentials),
            },
            "noticeSeconds": 20,
        }
        for place, value in changes.items():
            config[place] = {**config.get(place, {}), **value} if isinstance(value, dict) else value
        return Run(self, RunConfig.model_validate(config))

    def start(
        self,
        config: RunConfig,
        arguments: list[str],
        *,
        environment: dict[str, str] | None = None,
        cold: bool = False,
        fifo: bool = False,
        terminal: Path | None = None,
    ) -> Trainer:
        """Start an attempt of *config*; *environment* is added to its own.

        A *cold* one imports everything itself; with *fifo* its output is a pipe that nobody reads, with *terminal*
        that terminal.
        """
        folder = self.folder / f"{next(self._numbers)}-{config.run.name}"
        folder.mkdir()
        variables = {
            ENV_RUN_CONFIG: json.dumps(config.to_json()),
            ENV_TERMINATION_LOG: str(folder / "termination"),
            ENV_POD_UID: f"pod-{folder.name}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder),
            **(environment or {}),
        }
        if fifo:
            os.mkfifo(folder / "output")
            self._fifo = os.open(folder / "output", os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(self._fifo, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        if cold:
            command = [sys.executable, "-m", "lorafinetune_trainer", *arguments]
            with (folder / "output").open("wb") as output:
                started = Cold(subprocess.Popen(command, env={**os.environ, **variables}, stdout=output, stderr=output))
            self._started.append(started)
            return Trainer(started, folder)
        output_ = str(terminal or folder / "output")
        process = forkserver().Process(target=_become_trainer, args=(arguments, variables, output_))
        process.start()
        self._started.append(process)
        return Trainer(process, folder)

    def fifo_is_full(self) -> bool:
        """Whether the next line will not fit into the pipe that nobody reads."""
        waiting = struct.unpack("i", fcntl.ioctl(self._fifo, termios.FIONREAD, b"\0" * 4))[0]
        return bool(waiting > PIPE_BYTES - 512)

    def stop(self) -> None:
        if self._fifo >= 0:
            os.close(self._fifo)
        for process in self._started:
            if process.is_alive():
                process.kill()
            process.join(10)
            process.close()
