"""The command line of ``lorafinetune simulate``, and the manifests that it names, made into a scenario."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from pydantic import ValidationError

from lorafinetune.api.durations import seconds
from lorafinetune.api.gpupool import PRICE, CapacityType, GPUPoolSpec
from lorafinetune.simulate import traces as trace_files
from lorafinetune.simulate.generator import ZONES, generate
from lorafinetune.simulate.manifests import Manifests, OptionError, read
from lorafinetune.simulate.places import Platform
from lorafinetune.simulate.policies import BUILT_IN, CONFIGURED, POLICIES, Policy
from lorafinetune.simulate.scenario import BODY, ON_DEMAND, Arrival, Scenario, pool, zones_of
from lorafinetune.simulate.traces import Traces
from lorafinetune.simulate.training import Effort

__all__ = ["OptionError", "Wish", "parse"]

DAYS: Final = 45.0
MAX_RUNS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be simulated, and how it is to be told."""

    scenario: Scenario
    policies: tuple[Policy, ...]
    json: bool
    plot: Path | None
    save_traces: Path | None
    jobs: int | None


def parse(arguments: Sequence[str]) -> Wish:
    """Read the command line and the files that it names. Raises OptionError, TraceError."""
    given = _parser().parse_args(arguments)
    if given.plot is not None:
        _check_plot(given.plot)
    manifests = read(given.filename)
    traces = _traces(given)
    pools = manifests.pools or _pools(given, traces)
    zones = _zones(given, pools, traces)
    step, steps = _work(given, manifests)
    effort = Effort(step, given.start_up, given.save_seconds, given.upload_seconds, given.export_seconds)
    scenario = Scenario(
        traces=traces,
        pools=pools,
        zones=zones,
        runs=given.runs,
        steps=steps,
        effort=effort,
        platform=Platform(given.provisioning, given.notice, given.tells_dry),
        every_steps=given.every_steps,
        deadline=given.deadline,
        arrival=Arrival(given.arrive),
        seed=given.seed,
        machines=given.machines,
        body=manifests.run if manifests.run is not None else BODY,
    )
    policies = _policies(given, scenario, manifests)
    _check(scenario, policies)
    return Wish(scenario, policies, given.json, given.plot, given.save_traces, given.jobs)


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence, not after a page of usage."""

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        if said.endswith("expected one argument"):
            said += " (what begins with - is none: times and numbers are not below zero)"
        print(f"{self.prog}: {said}; --help says what there is", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lorafinetune simulate",
        description="Replay traces of spot capacity against the operator's own decisions, in virtual time: what would "
        "runs cost, and when would they be done? Durations are written 90s, 20m or 1h30m.",
    )
    add = parser.add_argument_group("capacity").add_argument
    add("--traces", type=Path, metavar="FILE", help="when zones had spot capacity (docs/simulate.md has the format)")
    add("--generate", type=_number(0.1, 3660), metavar="DAYS", help=f"make traces up instead (default: {DAYS:g} days)")
    add("--zones", metavar="ZONE,...", help="use these zones of the traces only, in this order")
    add("--seed", type=int, default=0, help="for made-up traces and random arrivals (default: %(default)s)")
    add("--save-traces", type=Path, metavar="FILE", help="write the traces that were used")
    add("--machines", type=_count(1_000_000), metavar="N", help="nodes of a zone, while it has any (default: enough)")
    add("--provisioning", type=_duration, default=180.0, metavar="TIME", help="from pod to container (default: 3m)")
    add("--notice", type=_duration, default=30.0, metavar="TIME", help="before a node ends (default: 30s; 0s = none)")
    add("--tells-dry", type=_duration, metavar="TIME", help="until a pod is told of no capacity (default: never)")
    add = parser.add_argument_group("prices and pools").add_argument
    add(
        "-f",
        "--filename",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="manifests (repeatable): GPUPools to use, a LoRAFineTune to run as configured",
    )
    add("--place", action="append", default=[], metavar="POOL=ZONE,...", help="zones of a pool of -f (repeatable)")
    add("--spot-price", type=_price, metavar="PRICE", help="of an hour (default: the traces', else 0.92)")
    add("--on-demand-price", type=_price, metavar="PRICE", help="of an hour (default: the traces', else 3.06)")
    add("--max-concurrent", type=_count(100_000), metavar="N", help="attempts of all runs in a pool (default: any)")
    add = parser.add_argument_group("runs").add_argument
    add("--runs", type=_count(MAX_RUNS), default=100, metavar="N", help="how many (default: %(default)s)")
    add("--arrive", choices=[one.value for one in Arrival], default=Arrival.SPREAD.value, help="(default: %(default)s)")
    add("--deadline", type=_some_time, metavar="TIME", help="within which each run is wanted")
    add("--work", type=_some_time, metavar="TIME", help="training of a run, undisturbed (default: 8h)")
    add("--steps", type=_count(100_000), metavar="N", help="its steps (default: the manifest's, else one a second)")
    add("--seconds-per-step", type=_number(0.001, 86_400), metavar="S", help="instead of --work")
    add("--start-up", type=_duration, default=90.0, metavar="TIME", help="container to first step (default: 90s)")
    add("--save-seconds", type=_number(0, 3600), default=1.0, metavar="S", help="a checkpoint's halt (default: 1)")
    add("--upload-seconds", type=_number(0, 3600), default=6.0, metavar="S", help="until it is durable (default: 6)")
    add("--export-seconds", type=_number(0, 86_400), default=20.0, metavar="S", help="for the LoRA (default: 20)")
    add("--every-steps", type=_count(100_000), metavar="N", help="between checkpoints (default: as often as pays)")
    add = parser.add_argument_group("what is compared, and how it is told").add_argument
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME",
        help="repeatable: " + "; ".join(f"{policy.name} ({policy.words})" for policy in POLICIES.values()),
    )
    add("--jobs", type=_count(1024), metavar="N", help="processes (default: one for each processor)")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--plot", type=Path, metavar="FILE.svg", help="write a picture")
    return parser


def _check_plot(path: Path) -> None:
    """Refuse, before hours of replay, a picture that could not be written or would not be what its name says."""
    if path.suffix.lower() != ".svg":
        raise OptionError(f"--plot {path}: the picture is an SVG: name a file that ends in .svg")
    if not os.access(path if path.exists() else path.parent, os.W_OK) or path.is_dir():
        raise OptionError(f"--plot {path}: cannot be written there: name a file in a folder that exists")


def _traces(given: argparse.Namespace) -> Traces:
    if given.traces is not None and given.generate is not None:
        raise OptionError("--traces and --generate: give one of them")
    traces = trace_files.read(given.traces) if given.traces is not None else None
    if traces is None:
        traces = generate(given.seed, given.generate or DAYS, ZONES)
    if given.zones is None:
        return traces
    names = [name.strip() for name in given.zones.split(",")]
    for name in names:
        if name not in traces.zones:
            raise OptionError(f"--zones: the traces have no zone {name!r}: choose from {', '.join(traces.zones)}")
    chosen = {name: traces.zones[name] for name in names}
    prices = {name: traces.prices[name] for name in names if name in traces.prices}
    return Traces(chosen, traces.gap_seconds, traces.start, traces.source, traces.instance, prices)


def _pools(given: argparse.Namespace, traces: Traces) -> dict[str, GPUPoolSpec]:
    """Return one spot pool for each zone, by its name, and one on-demand pool."""
    pools = {}
    for zone in traces.zones:
        price = given.spot_price or (str(traces.prices[zone].spot) if zone in traces.prices else "0.92")
        pools[zone] = pool(CapacityType.SPOT, price, zone, given.max_concurrent)
    dear = min((prices.on_demand for prices in traces.prices.values()), default=None)
    price = given.on_demand_price or (str(dear) if dear is not None else "3.06")
    pools[ON_DEMAND] = pool(CapacityType.ON_DEMAND, price, "any")
    return pools


def _zones(given: argparse.Namespace, pools: Mapping[str, GPUPoolSpec], traces: Traces) -> dict[str, tuple[str, ...]]:
    zones = zones_of(pools, list(traces.zones))
    for text in given.place:
        name, equals, listed = text.partition("=")
        wanted = tuple(zone.strip() for zone in listed.split(","))
        if not equals or name not in pools:
            raise OptionError(f"--place {text}: write POOL=ZONE,...; the pools are {', '.join(pools)}")
        for zone in wanted:
            if zone not in traces.zones:
                raise OptionError(f"--place {text}: the traces have no zone {zone!r}: {', '.join(traces.zones)}")
        zones[name] = wanted
    for name, spec in pools.items():
        if spec.capacity_type is CapacityType.SPOT and name not in zones:
            raise OptionError(
                f"GPUPool {name}: nothing says from which zones of the traces its nodes come: add --place {name}=ZONE "
                f"(or a nodeSelector topology.kubernetes.io/zone); the zones are {', '.join(traces.zones)}"
            )
    return zones


def _work(given: argparse.Namespace, manifests: Manifests) -> tuple[float, int]:
    """Return the seconds of a step, and how many there are."""
    if given.work is not None and given.seconds_per_step is not None:
        raise OptionError("--work and --seconds-per-step: give one of them")
    told = ((manifests.run or {}).get("training") or {}).get("steps")
    steps = given.steps or told
    if given.seconds_per_step is not None:
        if steps is None:
            raise OptionError("--seconds-per-step: say --steps too (or training.steps in the manifest)")
        return given.seconds_per_step, steps
    work = given.work or seconds("8h")
    if steps is None:
        steps = max(1, min(100_000, round(work)))
    return work / steps, steps


def _policies(given: argparse.Namespace, scenario: Scenario, manifests: Manifests) -> tuple[Policy, ...]:
    spot, on_demand = scenario.named(CapacityType.SPOT), scenario.named(CapacityType.ON_DEMAND)
    if not given.policy:
        usual = [*([CONFIGURED] if manifests.run is not None else []), *BUILT_IN]
        return tuple(
            policy
            for policy in usual
            if (spot or not policy.needs_spot)
            and (on_demand or not policy.needs_on_demand)
            and (scenario.deadline is not None or policy is CONFIGURED or not policy.keeps_deadline)
        )
    chosen = []
    for name in given.policy:
        policy = POLICIES.get(name)
        if policy is None:
            raise OptionError(f"--policy {name}: there is none of that name: choose from {', '.join(POLICIES)}")
        if policy is CONFIGURED and manifests.run is None:
            raise OptionError(f"--policy {name}: name the LoRAFineTune's manifest with -f")
        if policy.needs_spot and not spot:
            raise OptionError(f"--policy {name}: needs a GPUPool with capacityType Spot: add one to -f")
        if policy.needs_on_demand and not on_demand:
            raise OptionError(f"--policy {name}: needs a GPUPool with capacityType OnDemand: add one to -f")
        if policy.keeps_deadline and policy is not CONFIGURED and scenario.deadline is None:
            raise OptionError(f"--policy {name}: say --deadline")
        chosen.append(policy)
    return tuple(chosen)


def _check(scenario: Scenario, policies: Sequence[Policy]) -> None:
    """Refuse what would only come out as runs that never begin, or never end."""
    if scenario.deadline is not None and scenario.deadline < scenario.work:
        raise OptionError(
            f"--deadline: {scenario.deadline:.0f} s are less than the {scenario.work:.0f} s that a run takes "
            "undisturbed: give more time, or less --work"
        )
    if scenario.seconds < (scenario.deadline or scenario.work):
        raise OptionError(
            f"--traces: {scenario.seconds:.0f} s of traces are too short for one run: use longer ones, or --generate"
        )
    for policy in policies:
        try:
            spec = scenario.spec(policy, 0.0)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise OptionError(f"-f: spec.{where}: {first['msg']}") from error
        named = [*spec.placement.pools, *(spec.placement.on_demand.pools if spec.placement.on_demand else ())]
        for name in named:
            if name not in scenario.pools:
                raise OptionError(
                    f"-f: spec.placement names pool {name!r}: add its GPUPool to -f; known: {', '.join(scenario.pools)}"
                )
        if not named and not any(one.default for one in scenario.pools.values()):
            raise OptionError("-f: spec.placement names no pool, and no GPUPool is default: name one")


def _duration(text: str) -> float:
    if text == "0s":
        return 0.0
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _some_time(text: str) -> float:
    if (value := _duration(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write one such as 90s, 20m or 1h30m")
    return value


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return number


def _count(high: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdigit() or not 1 <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {high}")
        return int(text)

    return count


def _price(text: str) -> str:
    if re.fullmatch(PRICE, text) is None or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no price above zero with 6 digits after the point at most")
    return text
