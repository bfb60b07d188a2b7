"""``lorafinetune simulate``: replay traces of spot capacity against the real engine, before any money is spent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, NoReturn

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.engine.times import duration
from lorafinetune.simulate.chart import chart
from lorafinetune.simulate.figures import Figures, figures
from lorafinetune.simulate.options import OptionError, Wish, parse
from lorafinetune.simulate.policies import Policy
from lorafinetune.simulate.scenario import Scenario
from lorafinetune.simulate.table import table
from lorafinetune.simulate.traces import TraceError, write
from lorafinetune.simulate.world import DAY, START

TELL_EVERY: Final = 10.0
"""Days of virtual time between two lines on standard error."""


def main(arguments: Sequence[str]) -> None:
    """Simulate what *arguments* say, and print what came of it. Ends the process with 2 where they make no sense."""
    try:
        wish = parse(arguments)
        if wish.save_traces is not None:
            write(wish.scenario.traces, wish.save_traces)
        found = simulate(wish.scenario, wish.policies, jobs=wish.jobs)
        print(_printed(wish, found))  # first, so that no picture that fails takes it along
        if wish.plot is not None:
            wish.plot.write_text(chart(found, deadline=wish.scenario.deadline), encoding="utf-8")
    except (OptionError, TraceError) as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename}: {error.strerror}: name a file that can be written")


def simulate(scenario: Scenario, policies: Sequence[Policy], *, jobs: int | None = None) -> list[Figures]:
    """Return the figures of each policy, in their order, worked out in as many processes as there are processors."""
    workers = min(len(policies), jobs or os.cpu_count() or 1)
    if workers <= 1:
        return [run(scenario, policy) for policy in policies]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(run, [scenario] * len(policies), policies))


def run(scenario: Scenario, policy: Policy) -> Figures:
    """Return the figures of one policy; tells standard error how far it has come."""
    world = scenario.world(policy)
    days = scenario.seconds / DAY
    told = 0.0

    def tell(now: float) -> None:
        nonlocal told
        day = (now - START) / DAY
        if day - told >= TELL_EVERY:
            told = day
            print(f"{policy.name}: day {day:.0f} of {days:.0f}", file=sys.stderr)

    world.run(START + scenario.seconds, tell)
    found = figures(world.lives, policy=policy.name, words=policy.words, price=scenario.on_demand_price)
    print(f"{policy.name}: {found.finished} of {found.runs} runs done", file=sys.stderr)
    return found


def _printed(wish: Wish, found: Sequence[Figures]) -> str:
    if wish.json:
        return json.dumps({"policies": [one.to_json() for one in found]}, indent=2)
    scenario = wish.scenario
    spot = scenario.named(CapacityType.SPOT)
    zones = len({zone for name in spot for zone in scenario.zones[name]})
    head = f"{_counted(scenario.runs, 'run')} of {duration(scenario.work)}"
    head += f" on {_counted(len(spot), 'spot pool')} in {_counted(zones, 'zone')}" if spot else " on demand"
    head += f", {scenario.seconds / DAY:.0f} days"
    if scenario.deadline is not None:
        head += f", each wanted within {duration(scenario.deadline)}"
    return f"{head}\n\n{table(found, has_deadline=scenario.deadline is not None)}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _refuse(message: str) -> NoReturn:
    print(f"lorafinetune simulate: {message}", file=sys.stderr)
    sys.exit(2)
