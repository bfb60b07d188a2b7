"""``make bench-simulate``: how long 45 days of nine zones and 100 runs take, policy by policy, one process each."""

from __future__ import annotations

import resource
import sys
import time

from lorafinetune.simulate.command import run
from lorafinetune.simulate.options import parse
from lorafinetune.simulate.table import table

LIMIT = 60.0
"""Seconds that one policy may take."""


def main() -> None:
    """Simulate, print the table, and end with 1 where a policy took too long."""
    wish = parse(["--deadline", "24h", *sys.argv[1:]])
    found, slowest = [], 0.0
    for policy in wish.policies:
        began, used = time.perf_counter(), _processor()
        found.append(run(wish.scenario, policy))
        took = time.perf_counter() - began
        slowest = max(slowest, took)
        looks = found[-1].looks
        print(f"{policy.name}: {took:.1f} s, of a processor {_processor() - used:.1f} s, {looks} looks", flush=True)
    print()
    print(table(found, has_deadline=True))
    print(f"\nslowest policy: {slowest:.1f} s (limit {LIMIT:.0f} s)")
    sys.exit(int(slowest > LIMIT))


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
