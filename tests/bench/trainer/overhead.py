"""What a checkpoint takes from training: real attempts, in which the steps while one is saved stand beside as many
before it. So each checkpoint has its own comparison, a second or two long, and a machine's moods fall on both sides.

Wall time over whole runs cannot show it: two runs on a shared machine differ by a hundred times what it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafinetune.contract.runconfig import RunConfig
from tests.bench.trainer.attempts import Attempts, Mark, Marks
from tests.bench.trainer.figures import Figure, interval
from tests.bench.trainer.sizes import state_bytes
from tests.bench.trainer.stage import stage

CADENCE = 30.0
"""Seconds of training between two checkpoints, of which the shares are. The default is 50 steps; on an RTX 4090, for
which 1.56 s per step of 4 images are published, half of that makes it 39 s."""
LIMIT = 0.01
NICE = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """What one checkpoint took, beside as many steps without one."""

    steps: int
    """In which it was saved."""
    wall: float
    """Seconds more than the steps before it took."""
    cpu: float
    """Seconds of the CPU more, of the whole process."""
    held: float
    """Seconds for which the training thread itself made the snapshot."""


def costs(marks: Marks) -> list[Cost]:
    """Return what each checkpoint took but the first; those that have too few steps before them are left out."""
    found: list[Cost] = []
    steps: list[Mark] = []
    held = 0.0
    begun = free = -1  # places in steps: where the snapshot was taken, and from where on nothing is being saved
    saved = False
    for one in marks.lines:
        match one["what"]:
            case "snapshot":
                begun, saved, held = len(steps) - 1, False, float(one["seconds"])
            case "saved" if begun >= 0:
                saved = True
            case "step":
                steps.append(one)
                if not saved:
                    continue
                count = len(steps) - 1 - begun
                if 0 <= free <= begun - count:
                    before, middle, after = (steps[begun + place] for place in (-count, 0, count))
                    more = {name: after[name] - 2 * middle[name] + before[name] for name in ("at", "cpu")}
                    found.append(Cost(count, more["at"], more["cpu"], held))
                begun, free, saved = -1, len(steps) - 1, False
    return found


def figures(folder: Path) -> list[Figure]:
    """Run attempts with the tiny model's own state and with one of the real SDXL's size; return the rows."""
    place = folder / "overhead"
    place.mkdir()
    # In earnest the server is elsewhere: what it computes must not be taken for what a checkpoint takes from training.
    with stage(place, nice=NICE) as here:
        attempts = Attempts(place)
        return [
            *_of(attempts, here.config("small", steps=300, every=15), 0),
            *_of(attempts, here.config("large", steps=540, every=60), state_bytes(16)),
        ]


def _of(attempts: Attempts, config: RunConfig, ballast: int) -> list[Figure]:
    marks = attempts.run(config, ballast=ballast)
    found = costs(marks)
    if len(found) < 3:
        raise RuntimeError(f"only {len(found)} checkpoints could be compared with steps without one")
    state = max(int(one["size"]) for one in marks.all("saved")) / 1e6
    size = f"of {state:.3g} MB" + (", as of rank 16 on SDXL" if ballast else "")
    wall, cpu, held = ([getattr(one, name) for one in found] for name in ("wall", "cpu", "held"))
    steps = statistics.median(one.steps for one in found)
    step = statistics.median(marks.step_seconds)
    note = (
        f"{len(found)} checkpoints; while one was saved ({steps:.0f} steps at {step:.2g} s) training took "
        f"{_seconds(wall)} s more than for as many steps before it; the medians, and between which values they lie 19 "
        "times in 20"
    )
    if ballast:
        note += "; here training, saver and server share the cores, and the training thread copies what a GPU would"
    return [
        _share(f"training time lost to a checkpoint {size} each {CADENCE:.0f} s, share", wall, note),
        _share(f"training thread held by a checkpoint {size} each {CADENCE:.0f} s, share", held),
        _value(f"CPU of the whole process for a checkpoint {size}", cpu),
        _value(f"training thread held by a checkpoint {size}", held),
    ]


def _share(measure: str, seconds: Sequence[float], note: str = "") -> Figure:
    low, high = interval(seconds)
    ours = statistics.median(seconds) / CADENCE
    return Figure(measure, ours, "", target=LIMIT, note=note, spread=(low / CADENCE, high / CADENCE))


def _value(measure: str, seconds: Sequence[float]) -> Figure:
    return Figure(measure, statistics.median(seconds), "s", spread=interval(seconds))


def _seconds(values: Sequence[float]) -> str:
    low, high = interval(values)
    return f"{statistics.median(values):.2g} ({low:.2g} to {high:.2g})"
