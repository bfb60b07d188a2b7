"""``python -m tests.bench.notice``: how soon the trainer hears a SIGTERM in each phase, and how long saving takes.

Real processes and real signals. Each wake-up is measured beside one of a control process that does nothing but the
same wait, so that what the machine does shows. Figures are printed and never judged.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples import tiny_sdxl
from lorafinetune.contract.runconfig import ENV_POD_UID, ENV_RUN_CONFIG, ENV_TERMINATION_LOG, RunConfig
from tests.bench.samples import Samples
from tests.integration.trainer.faults import proxy
from tests.integration.trainer.s3 import Access, serve

PAUSE = 0.02
LIMIT = 30.0
"""Seconds after which a wake-up counts as missing."""
LINK = 100e6
"""Bytes per second of the shaped link."""
STATE_BYTES = 3 * 1120 * 32 * 1296 * 4
NOTICE = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """One measure: the trainer's values, and those of the control process that was asked in turn with it."""

    measure: str
    ours: Samples
    control: Samples | None = None
    unit: str = "ms"
    target: float | None = None


class Probed:
    """A process that is sent signals and tells when it was awake."""

    def __init__(self, what: str, environment: dict[str, str], output: Path) -> None:
        self._read, write = os.pipe()
        with output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.probed", what, str(write)],
                env={**os.environ, **environment},
                pass_fds=(write,),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        os.close(write)
        self.output = output

    def probe(self) -> tuple[float | None, str]:
        """Send SIGINT; return the milliseconds until the thread was awake (None: not within the limit), and where."""
        sent = time.monotonic_ns()
        self.process.send_signal(signal.SIGINT)
        if not select.select([self._read], [], [], LIMIT)[0]:
            return None, ""
        line = os.read(self._read, 4096).decode().splitlines()
        if not line:
            return None, ""
        when, _, phase = line[-1].partition(" ")
        return (int(when) - sent) / 1e6, phase

    def listens(self) -> bool:
        """Whether it has its handlers already: without, a signal would end it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
        return bool(caught & (1 << (signal.SIGTERM - 1)))

    def end(self) -> float:
        """Send SIGTERM and return the seconds until it has ended."""
        sent = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - sent

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.close(self._read)


@contextlib.contextmanager
def probed(what: str, output: Path, environment: dict[str, str] | None = None) -> Iterator[Probed]:
    made = Probed(what, environment or {}, output)
    try:
        _until(made.listens, "it listens")
        yield made
    finally:
        made.close()


def rows(folder: Path, *, runs: int = 2, steps_seconds: float = 20.0) -> list[Row]:
    """Measure, and return the table's rows."""
    (folder / "s3").mkdir()
    with serve(folder / "s3") as s3, probed("control", folder / "control") as control:
        stand = _Stand(folder, s3, control)
        return [*stand.awake(runs, steps_seconds), *stand.whole()]


class _Stand:
    def __init__(self, folder: Path, s3: Access, control: Probed) -> None:
        self._folder, self._s3, self._control = folder, s3, control
        self._number = 0
        self._model = tiny_sdxl.build(folder / "model")
        self._photos = folder / "photos"
        self._photos.mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (96, 80 + 8 * number, 3), np.uint8)
            Image.fromarray(pixels).save(self._photos / f"{number}.png")

    def awake(self, runs: int, seconds: float) -> list[Row]:
        """Signal trainers, started from nothing, in all their phases; and one for long while it steps."""
        ours: dict[str, list[float | None]] = defaultdict(list)
        theirs: dict[str, list[float | None]] = defaultdict(list)
        for steps in [40] * runs + [100_000]:
            with self._trainer(steps) as trainer:
                begun: float | None = None
                while trainer.process.poll() is None and (begun is None or time.monotonic() - begun < seconds):
                    took, phase = trainer.probe()
                    if phase or trainer.process.poll() is None:
                        ours[phase].append(took)
                        theirs[phase].append(self._control.probe()[0])
                    if steps > 40 and phase == "Training":
                        begun = begun or time.monotonic()
                    time.sleep(PAUSE)
        return [
            Row(
                f"awake after SIGTERM, {phase}",
                Samples.of(ours[phase]),
                Samples.of(theirs[phase]),
                target=20.0 if phase == "Training" else 1000.0,
            )
            for phase in ours
        ]

    def whole(self) -> list[Row]:
        """Save a state of rank 32 over a link of 100 MB/s: SIGTERM alone, and while an older one is on its way."""
        found: list[Row] = []
        with proxy(self._s3.endpoint) as between:
            between.link.bytes_per_second = LINK
            for case in ("nothing on its way", "an older state on its way"):
                config = self._config({"storage": {"endpoint": between.endpoint}, "noticeSeconds": NOTICE})
                with self._process("state", config) as saver:
                    _until(lambda: b"ready" in saver.output.read_bytes(), "the state is there", 120)
                    ours: list[float | None] = []
                    theirs: list[float | None] = []
                    if case != "nothing on its way":
                        assert saver.process.stdin is not None
                        saver.process.stdin.write(b"save\n")
                        saver.process.stdin.flush()
                        until = time.monotonic() + 3.0
                        while time.monotonic() < until:
                            ours.append(saver.probe()[0])
                            theirs.append(self._control.probe()[0])
                            time.sleep(PAUSE)
                        measure = "awake after SIGTERM, while 557 MB are uploaded"
                        found.append(Row(measure, Samples.of(ours), Samples.of(theirs), target=20.0))
                    took = saver.end()
                    words = json.loads((self._folder / f"{self._number}.words").read_text())
                    measure = f"{STATE_BYTES / 1e6:.0f} MB at {LINK / 1e6:.0f} MB/s (shaped), {case}: {words['saved']}"
                    found.append(Row(measure, Samples.of([took]), unit="s", target=10.0))
        return found

    def _config(self, changes: dict[str, Any]) -> RunConfig:
        self._number += 1
        name = f"notice-{self._number}"
        storage = {"uri": "s3://loras/", "endpoint": self._s3.endpoint, "credentials": str(self._s3.credentials)}
        config = {
            "run": {"name": name, "uid": f"{name}-0000-uid"},
            "baseModel": {"source": str(self._model)},
            "dataset": {"source": str(self._photos), "instancePrompt": "a photo of sks timber dog"},
            "training": {"steps": 40, "resolution": 64, "precision": "fp32", "lora": {"rank": 4}},
            "checkpoint": {"everySteps": 5},
            **changes,
            "storage": {**storage, **changes.get("storage", {})},
        }
        return RunConfig.model_validate(config)

    def _trainer(self, steps: int) -> contextlib.AbstractContextManager[Probed]:
        training = {"steps": steps, "resolution": 64, "precision": "fp32", "lora": {"rank": 4}}
        return self._process("trainer", self._config({"training": training}))

    def _process(self, what: str, config: RunConfig) -> contextlib.AbstractContextManager[Probed]:
        environment = {
            ENV_RUN_CONFIG: json.dumps(config.to_json()),
            ENV_TERMINATION_LOG: str(self._folder / f"{self._number}.words"),
            ENV_POD_UID: f"pod-{self._number}",
            "HF_HUB_OFFLINE": "1",
        }
        return probed(what, self._folder / f"{self._number}.output", environment)


def render(found: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| measure | N | p50 | p99 | most | control p99 | target |", "|---|---:|---:|---:|---:|---:|---:|"]
    for row in found:
        control = row.control.percentile(99) if row.control is not None else None
        values = (row.ours.median, row.ours.percentile(99), row.ours.percentile(100), control, row.target)
        cells = [f"{one:.3g} {row.unit}" if one is not None else "-" for one in values]
        missing = f" ({row.ours.missing} missing)" if row.ours.missing else ""
        lines.append(f"| {row.measure} | {len(row.ours.values)}{missing} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _until(condition: Any, what: str, seconds: float = LIMIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.01)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(render(rows(Path(place))))
