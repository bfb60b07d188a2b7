"""`python -m tests.bench [OUTPUT.json]`: the operator beside the built-in Job controller, on one API server.

The control plane is localcluster's, without nodes: pods stay Pending, so that the controllers alone are measured. The
operator is the real process with the chart's rights. SIZES (1,100,1000) says how many runs and Jobs are at it at
once, CROWDS (1000,10000) how many idle runs there are while nothing happens; REAL=0 leaves out the run that a real
trainer trains. The exit status is 1 if something did
not happen at all, if a run ever had two live pods, or if a limit of limits.yaml that decides is broken.

`python -m tests.bench summary FILE.json ...` prints mean and spread of each figure over several runs, and writes what
was measured into limits.yaml.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from examples.stage import DATA, LORAS, Stage, fill_buckets
from localcluster.api import Api
from localcluster.fixtures import wait_for_namespace
from tests.bench import limits
from tests.bench.contenders import NAMESPACE, Job, Run
from tests.bench.course import Course
from tests.bench.lives import Lives
from tests.bench.machine import Machine
from tests.bench.measures import Bench
from tests.bench.podwatch import PodWatch
from tests.bench.samples import Samples
from tests.bench.scrape import Writes
from tests.bench.table import NOTES, Row, render

WHOLE_SECONDS = 2400.0
"""For all measures together; starting and ending the cluster comes on top."""
SIZES, CROWDS = "1,100,1000", "1000,10000"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A PNG: before an attempt is made, the operator asks whether the data set holds an image."""


def main(arguments: list[str]) -> int:
    """Measure, print the tables, write the JSON, and return the exit status."""
    if arguments[:1] == ["summary"]:
        return _summary([Path(one) for one in arguments[1:]])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster is ended in order
    machine, real = Machine.look(), os.environ.get("REAL", "1") != "0"
    with Stage(say=_say) as stage:
        _furnish(stage, real)
        return asyncio.run(_measure(stage, real, machine, Path(arguments[0]) if arguments else None))


def _furnish(stage: Stage, real: bool) -> None:
    if real:
        with tempfile.TemporaryDirectory() as scratch:
            fill_buckets(stage, Path(scratch))
    else:
        for bucket in (DATA, LORAS):
            stage.cluster.bucket(bucket)
        stage.cluster.s3.client().put_object(Bucket=DATA, Key="timber/pixel.png", Body=PIXEL)
    stage.add_pool("spot", price="0.348")
    stage.cluster.kubectl("create", "namespace", NAMESPACE)
    wait_for_namespace(stage.cluster, NAMESPACE)
    stage.add_credentials(NAMESPACE)


async def _measure(stage: Stage, real: bool, machine: Machine, output: Path | None) -> int:
    problems: list[str] = []
    async with Api.from_kubeconfig(stage.cluster.kubeconfig) as api, PodWatch(api, NAMESPACE) as pods:

        async def look() -> Writes:
            own, served = await asyncio.gather(asyncio.to_thread(stage.metrics), api.get("/metrics"))
            return Writes.read(own, served["text"])

        sizes, crowds = _numbers("SIZES", SIZES), _numbers("CROWDS", CROWDS)
        bench, run = Bench(api, pods), Run(stage)
        lives = Lives(stage, api, bench, run, look)
        course = Course(stage, api, bench, lives, run, Job(), look, _say, sizes, real, crowds)
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                await course.measure()
        except TimeoutError as error:
            problems.append(str(error) or f"the bench was not through after {WHOLE_SECONDS:.0f} s")
        version = str((await api.get("/version"))["gitVersion"])
        duplicates = sorted(pods.duplicates)
    rows = course.rows
    twice = Samples((float(len(duplicates)),))
    rows.append(
        Row("duplicates", "pods that were live beside another of their owner, or made twice", 0, twice, unit="")
    )
    problems += [row.missing for row in rows if row.missing]
    problems += course.bench.lost[:5]
    problems += [f"one too many: {name}" for name in duplicates[:5]]
    if stage.restarts:
        problems.append(f"the operator ended by itself {stage.restarts} times: {_last_words(stage)}")
    verdicts = limits.Limits.read().judge(limits.figures(rows))
    problems += [one.sentence() for one in verdicts if one.fatal]
    head = machine.line(f"Kubernetes {version}", os.getloadavg())
    print("", head, "", render(rows), "", NOTES, *course.notes, "", limits.render(verdicts), sep="\n")
    if output is not None:
        output.write_text(json.dumps({"machine": head, "figures": limits.figures(rows)}, indent=1) + "\n", "utf-8")
        print(f"\nJSON: {output}")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _numbers(name: str, default: str) -> list[int]:
    """Return the numbers that the environment names; SystemExit where they are none."""
    text = os.environ.get(name) or default
    parts = text.split(",")
    if not all(one.strip().isdigit() and int(one) for one in parts):
        raise SystemExit(f"{name}={text!r} is no list of numbers: write it as {default}")
    return [int(one) for one in parts]


def _summary(paths: list[Path]) -> int:
    """Print all runs in one table, put what was measured into limits.yaml, and judge the worst of each figure."""
    found = [json.loads(path.read_text("utf-8")) for path in paths]
    if not found:
        raise SystemExit("name the JSON files of the runs: python -m tests.bench summary build/*.json")
    seen, kept = limits.summary([one["figures"] for one in found]), limits.Limits.read()
    print(limits.together(kept, seen))
    date, _, machine = found[0]["machine"].partition("; ")
    measured = limits.measured(kept, seen, date[:10], machine)
    limits.FILE.write_text(limits.text(measured, limits.heading()), encoding="utf-8")
    print(f"\nwritten into {limits.FILE.name}: mean, spread and margin of {len(seen.keys() & kept.names)} limits")
    worst: dict[str, dict[str, float]] = {key: {} for key in {name.rpartition(".")[0] for name in seen}}
    for name, one in seen.items():
        key, _, figure = name.rpartition(".")
        worst[key][figure] = one.most
    broken = [one for one in kept.judge(worst) if one.fatal]
    for one in broken:
        print(f"FAILED: {one.sentence()}", file=sys.stderr)
    return 1 if broken else 0


def _last_words(stage: Stage) -> str:
    """Why the operator ended, as its log says."""
    lines = stage.operator_log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if '"level": "critical"' in line), "its log does not say why")


_begun = time.monotonic()


def _say(message: str) -> None:
    print(f"{time.monotonic() - _begun:5.1f} s  {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
