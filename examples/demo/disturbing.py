"""Takes the node from under an attempt, plays the autoscaler, and says what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from examples.demo.account import attempt_of, in_words, interruption, worth_disturbing
from examples.demo.error import DemoError
from examples.demo.scene import Scene
from examples.demo.stagehands import TIMBER, shown
from examples.demo.watching import Watching

NOTICE = 30.0
"""Seconds of notice. EC2 gives 120; the trainer needs few of them."""
NODE_GONE = 5.0
"""Seconds after which a killed machine's Node object goes, as a cloud's controller sees to it."""
START, TRAIN, RECOVER = 180.0, 600.0, 180.0
"""The longest waits: for the first step, for a good moment, for the next attempt."""


class Fault(NamedTuple):
    """A way in which a node is taken."""

    attempt: int
    node: str
    replacement: str
    noticed: bool
    strike: Callable[[], None]
    words: str
    latest: float
    """The part of all steps from which on it is now or never."""


def faults(scene: Scene) -> tuple[Fault, Fault]:
    """Return the two of the play: with notice, and without."""
    control = scene.cluster.faults
    return (
        Fault(
            attempt=1,
            node="gpu-1",
            replacement="gpu-2",
            noticed=True,
            strike=lambda: control.preempt("gpu-1", NOTICE),
            words=f"gpu-1 is reclaimed with {NOTICE:.0f} s notice, as EC2 and Karpenter do it (with 120 s).",
            latest=0.5,
        ),
        Fault(
            attempt=2,
            node="gpu-2",
            replacement="gpu-3",
            noticed=False,
            strike=lambda: control.kill("gpu-2", delete_node_after=NODE_GONE),
            words="gpu-2 is gone, without notice: SIGKILL to everything on it, as when the power fails.",
            latest=0.85,
        ),
    )


def disturb(scene: Scene, watching: Watching, fault: Fault, *, steps: int, every: int) -> None:
    """Wait for a good moment, take the node, bring another, and tell when training goes on. Raises DemoError."""
    screen, number, after = scene.screen, fault.attempt, fault.attempt + 1
    latest = int(fault.latest * steps)
    watching.until(
        f"for attempt {number} to train", lambda: attempt_of(watching.status, number).get("toStep", 0) > 0, START
    )
    watching.until(
        f"for attempt {number} to be past a checkpoint",
        lambda: (
            worth_disturbing(watching.status, number, every=every, latest=latest)
            or attempt_of(watching.status, number).get("cause")
        ),
        TRAIN,
    )
    if attempt_of(watching.status, number).get("cause"):
        raise DemoError(
            f"attempt {number} was over before {fault.node} could be taken: set more training.steps in {shown(TIMBER)}"
        )
    screen.say(fault.words)
    struck = time.monotonic()
    fault.strike()
    watching.until(f"for the pod of attempt {after}", lambda: attempt_of(watching.status, after), RECOVER)
    screen.say(
        f"The pod of attempt {after} is there and finds no node. The demo plays the autoscaler and brings "
        f"{fault.replacement} (a cloud takes a minute or more for that)."
    )
    scene.add_gpu_node(fault.replacement)
    told = watching.until(
        f"for attempt {after} to train", lambda: interruption(watching.moments, number, struck), RECOVER
    )
    screen.say(in_words(told, noticed=fault.noticed, every=every))
