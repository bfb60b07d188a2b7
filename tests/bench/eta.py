"""``make bench-eta``: what ETA says of real runs of the tiny SDXL, second by second, against what then came to pass.

Two runs: one that nothing disturbs, and one whose node is taken, with notice, at half of its steps. An error is a part
of the time that was left when it was said. Nothing is judged here: a machine with other work is slower than it was.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

from examples.stage import Stage, fill_buckets
from lorafinetune.api.durations import seconds

STEPS, LATEST = 400, 900.0
NAMESPACE = "default"
Sample = tuple[float, float, float]
"""When it was said, the part of the steps that was done, the seconds that it said."""


def played(stage: Stage, name: str, *, taken: bool) -> tuple[list[Sample], float]:
    """Live one run to its end: what was said, and when it ended."""
    stage.cluster.apply(stage.run(NAMESPACE, name, training={"steps": STEPS}, checkpoint={"everySteps": 40}))
    samples: list[Sample] = []
    begun = time.monotonic()
    while time.monotonic() - begun < LATEST:
        status, now = stage.status(NAMESPACE, name), time.monotonic()
        if status.get("phase") in ("Succeeded", "Failed"):
            return samples, now
        part = (status.get("step") or 0) / STEPS
        if "eta" in status:
            samples.append((now, part, seconds(status["eta"])))
        if taken and part >= 0.5:
            taken = False
            pods = stage.cluster.get("pods", "-n", NAMESPACE, "-l", f"lorafinetune.io/run={name}")["items"]
            live = next(one for one in pods if one["status"]["phase"] == "Running")
            stage.cluster.faults.preempt(live["spec"]["nodeName"], notice=20, replace_after=2)
        time.sleep(1.0)
    raise TimeoutError(f"{name} was not done within {LATEST:.0f} s")


def main() -> None:
    """Play both, and print a line for each fifth of the steps."""
    with Stage(say=lambda words: print(words, file=sys.stderr)) as stage, tempfile.TemporaryDirectory() as scratch:
        fill_buckets(stage, Path(scratch))
        stage.add_pool("spot", price="0.348")
        stage.add_node("gpu-1", "spot", cloud="eks-karpenter", capacity_type="spot")
        stage.add_credentials(NAMESPACE)
        for name, taken in (("calm", False), ("taken", True)):
            samples, ended = played(stage, name, taken=taken)
            told = [(part, said - (ended - when), ended - when) for when, part, said in samples if 0.1 <= part < 0.98]
            parts = [abs(error) / left for _, error, left in told]
            print(f"{name}: {len(told)} words of an ETA after a tenth of {STEPS} steps; off by {mean(parts):.1%} of")
            print(f"  what was left in the mean, {median(parts):.1%} in the middle, {max(parts):.1%} at most")
            for fifth in (0.1, 0.2, 0.4, 0.6, 0.8):
                part, error, left = next(one for one in told if one[0] >= fifth)
                off = f"{error / left:+.1%}"
                print(f"  at {part:.0%} of the steps: said {left + error:.0f} s, it took {left:.0f} s ({off})")


if __name__ == "__main__":
    main()
