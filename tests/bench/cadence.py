"""`python -m tests.bench.cadence TRACE.json`: what our cadence of checkpoints loses on recorded lives of spot nodes.

TRACE.json holds ``zones``: of each the lengths of runs of samples, available and not by turns, and ``gap_seconds``
between two samples. The moment of a loss lies somewhere between two samples, so it is drawn there: else every lifetime
were a multiple of the gap, and an oracle could learn that by heart.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Final

from tests.unit.engine import lifetimes

COSTS: Final = (0.12, 0.77, 2.0, 5.0)
"""Seconds of a save: what held the training thread at rank 16, all that it cost on two shared cores, and more."""
TARGET: Final = 0.035
NEAR: Final = 1.10


def main() -> int:
    """Print one line for each zone and cost, and how many lose more than they should."""
    trace = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    gap, keys, missed = float(trace["gap_seconds"]), random.Random(0), 0
    print("| zone | lives | mean | cost of a save | the oracle's loss | ours | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for zone, runs in trace["zones"].items():
        lives = [gap * run + keys.uniform(-gap, gap) for run in runs[0::2] if run]
        for cost in COSTS:
            measured = [cost * keys.lognormvariate(-0.03, 0.25) for _ in lives]
            share, best = lifetimes.ours(lives, measured).share, lifetimes.oracle(lives, cost)
            missed += share > max(TARGET, NEAR * best)
            mean = sum(lives) / len(lives) / 3600
            print(
                f"| {zone} | {len(lives)} | {mean:.1f} h | {cost:g} s | {best:.2%} | {share:.2%} | {share / best:.2f} |"
            )
    print(f"\n{missed} lose more than {TARGET:.1%} and more than {NEAR:.2f} of the oracle's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
