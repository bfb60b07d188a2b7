"""How soon the trainer hears a SIGTERM in each phase, and how long saving takes. Real processes, real signals.

Each wake-up is measured beside one of a control process that does nothing but the same wait, so that what the machine
does shows.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorafinetune.contract.runconfig import ENV_POD_UID, ENV_RUN_CONFIG, ENV_TERMINATION_LOG, RunConfig
from tests.bench.samples import Samples
from tests.bench.table import short
from tests.bench.trainer.figures import Figure
from tests.bench.trainer.probes import LIMIT, Heard, Probed, probed, until
from tests.bench.trainer.relay import Counts, relay
from tests.bench.trainer.sizes import state_bytes
from tests.bench.trainer.stage import Stage

PAUSE = 0.02
RUNS = 2
"""Attempts that are signalled from their first to their last phase."""
TRAINING_SECONDS = 20.0
"""Time for which one more is signalled while it steps."""
ROUNDS = 3
LINK = 100e6
"""Bytes per second of the shaped link."""
STATE_BYTES = state_bytes(32)
NOTICE = 30.0
CONTROL = "a process that only waits"
WHOLE_LIMIT = 10.0
STEPPING = "Training"
AWAKE_LIMITS = {99: 20.0, 100: 1000.0}
"""Milliseconds for so many percent: 99 of all signals while it steps, each of them in all other phases."""
_ALL_PHASES = {
    "dataset": {"classPrompt": "a photo of a dog", "classImages": 4},
    "training": {"steps": 40, "emaDecay": 0.99},
    "checkpoint": {"everySteps": 5},
    "validation": {"prompts": ["sks timber dog in snow"], "everySteps": 10, "inferenceSteps": 10},
}
_LONG = {"training": {"steps": 100_000, "emaDecay": 0.99}, "checkpoint": {"everySteps": 20}}

_Heard = dict[str, list[float | None]]


def signals(here: Stage) -> list[Figure]:
    """Return how soon attempts were awake after SIGTERM, in all phases."""
    with _stand(here, "signals") as stand:
        return stand.awake()


def rescues(here: Stage) -> list[Figure]:
    """Return how long it took to save a large state."""
    with _stand(here, "rescues") as stand:
        return stand.whole()


@contextlib.contextmanager
def _stand(here: Stage, name: str) -> Iterator[_Stand]:
    place = here.folder / name
    place.mkdir()
    with probed("control", place / "control") as control:
        yield _Stand(here, place, control)


class _Stand:
    def __init__(self, here: Stage, folder: Path, control: Probed) -> None:
        self._here, self._folder, self._control = here, folder, control
        self._number = 0

    def awake(self) -> list[Figure]:
        """Signal attempts that are started from nothing in all their phases, and one for long while it steps."""
        ours: _Heard = defaultdict(list)
        theirs: _Heard = defaultdict(list)
        for changes in (*[_ALL_PHASES] * RUNS, _LONG):
            with self._process("trainer", self._config(changes)) as trainer:
                stop: float | None = None
                while (stop is None or time.monotonic() < stop) and (heard := self._pair(trainer, theirs)) is not None:
                    ours[heard.phase].append(heard.milliseconds)
                    if changes is _LONG and heard.phase == STEPPING:
                        stop = stop or time.monotonic() + TRAINING_SECONDS
                    time.sleep(PAUSE)
        return [
            awake(f"in the phase {phase}", ours[phase], theirs[phase], 99 if phase == STEPPING else 100)
            for phase in ours
        ]

    def _pair(self, trainer: Probed, theirs: _Heard) -> Heard | None:
        """Signal the trainer and then the control process, whose answer belongs to the trainer's phase."""
        heard = trainer.probe()
        beside = self._control.probe()
        if heard is not None and beside is not None:
            theirs[heard.phase].append(beside.milliseconds)
        return heard

    def whole(self) -> list[Figure]:
        """Save a state of rank 32 over a link of 100 MB/s, by turns: SIGTERM alone, and with an older on its way."""
        seconds: dict[str, list[float]] = defaultdict(list)
        said: dict[str, str] = {}
        ours: list[float | None] = []
        theirs: _Heard = defaultdict(list)
        for _ in range(ROUNDS):
            for case in ("nothing on its way", "an older state on its way"):
                with self._saver() as (saver, passed):
                    if case != "nothing on its way":
                        saver.say("save")
                        until(lambda: passed.up > STATE_BYTES / 10, "the older state is on its way")
                        while passed.up < STATE_BYTES / 2 and (heard := self._pair(saver, theirs)) is not None:
                            ours.append(heard.milliseconds)
                            time.sleep(PAUSE)
                    seconds[case].append(saver.end())
                said[case] = self._last_words()
        size = f"{STATE_BYTES / 1e6:.0f} MB (rank 32) over a link of {LINK / 1e6:.0f} MB/s (shaped)"
        beside = [one for every in theirs.values() for one in every]
        return [
            *(
                Figure(
                    f"SIGTERM to the end, {size}, {case}",
                    statistics.median(every),
                    "s",
                    STATE_BYTES / LINK,
                    "the bytes on the link alone",
                    WHOLE_LIMIT,
                    by_value=True,
                    spread=(min(every), max(every)),
                    note=said[case],
                )
                for case, every in seconds.items()
            ),
            awake(f"while {STATE_BYTES / 1e6:.0f} MB are uploaded", ours, beside, 99),
        ]

    @contextlib.contextmanager
    def _saver(self) -> Iterator[tuple[Probed, Counts]]:
        with relay(self._here.s3.endpoint, LINK) as passed:
            config = self._config({"storage": {"endpoint": passed.endpoint}, "noticeSeconds": NOTICE})
            with self._process("state", config) as saver:
                until(lambda: b"ready" in saver.output.read_bytes(), "the state is there", 120)
                yield saver, passed

    def _last_words(self) -> str:
        """Return what the process said at its end. It must have saved its newest state."""
        words = json.loads(self._words.read_text())
        if words["saved"] != "new" or words["durableStep"] != words["step"]:
            raise RuntimeError(f"the newest state was not saved: {words}")
        return f"saved: {words['saved']}, step {words['durableStep']} of {words['step']}, phase {words['phase']}"

    @property
    def _words(self) -> Path:
        return self._folder / f"{self._number}.words"

    def _config(self, changes: dict[str, Any]) -> RunConfig:
        self._number += 1
        config = self._here.config(f"{self._folder.name}-{self._number}", steps=1, every=1).to_json()
        for section, values in changes.items():
            config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
        return RunConfig.model_validate(config)

    def _process(self, what: str, config: RunConfig) -> contextlib.AbstractContextManager[Probed]:
        environment = {
            ENV_RUN_CONFIG: json.dumps(config.to_json()),
            ENV_TERMINATION_LOG: str(self._words),
            ENV_POD_UID: f"pod-{self._number}",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(self._folder),
        }
        return probed(what, self._folder / f"{self._number}.output", environment)


def awake(when: str, ours: list[float | None], theirs: list[float | None], percent: int) -> Figure:
    """Return the row of so many wake-ups, in milliseconds, of which a percentile is judged."""
    mine, control = Samples.of(ours), Samples.of(theirs)
    missing = f" ({mine.missing} not within {LIMIT:.0f} s)" if mine.missing else ""
    middle, *most = (short(one or 0.0) for one in (mine.median, mine.percentile(100), control.percentile(100)))
    return Figure(
        f"awake after SIGTERM {when}, {'most' if percent == 100 else f'p{percent}'}",
        mine.percentile(percent) if not mine.missing else LIMIT * 1000,
        "ms",
        control.percentile(percent),
        CONTROL,
        AWAKE_LIMITS[percent],
        by_value=True,
        note=f"{len(ours)} signals{missing}, median {middle} ms, most {most[0]} ms (control {most[1]} ms)",
    )
