"""`python -m tests.bench`: the operator beside the built-in Job controller, on one API server, in one run.

The control plane is localcluster's, without nodes: pods stay Pending, so that the controllers alone are measured. The
operator is the real process with the chart's rights. Times are compared and never judged; the exit status is 1 if
something did not happen at all.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import time

import psutil

from examples.stage import DATA, LORAS, Stage
from localcluster.api import Api
from localcluster.fixtures import wait_for_namespace
from tests.bench.contenders import NAMESPACE, Job, Run
from tests.bench.course import Course
from tests.bench.machine import Machine
from tests.bench.measures import Bench
from tests.bench.podwatch import PodWatch
from tests.bench.scrape import Writes
from tests.bench.table import NOTES, render

WHOLE_SECONDS = 200.0
"""For all measures together; starting and ending the cluster comes on top."""
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A PNG: before an attempt is made, the operator asks whether the data set holds an image."""


def main() -> int:
    """Measure, print the table, and return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the cluster is ended in order
    machine = Machine.look()
    with Stage(say=_say) as stage:
        _furnish(stage)
        return asyncio.run(_measure(stage, machine))


def _furnish(stage: Stage) -> None:
    for bucket in (DATA, LORAS):
        stage.cluster.bucket(bucket)
    stage.cluster.s3.client().put_object(Bucket=DATA, Key="timber/pixel.png", Body=PIXEL)
    stage.add_pool("spot", price="0.348")
    stage.cluster.kubectl("create", "namespace", NAMESPACE)
    wait_for_namespace(stage.cluster, NAMESPACE)
    stage.add_credentials(NAMESPACE)


async def _measure(stage: Stage, machine: Machine) -> int:
    manager = int(stage.cluster.status()["control_plane"]["kube-controller-manager"])
    operator = stage.operator_pid
    problems: list[str] = []
    async with Api.from_kubeconfig(stage.cluster.kubeconfig) as api, PodWatch(api, NAMESPACE) as pods:

        async def look() -> Writes:
            own, served = await asyncio.gather(asyncio.to_thread(stage.metrics), api.get("/metrics"))
            return Writes.read(own, served["text"])

        course = Course(Bench(api, pods), Run(stage), Job(), look, _say)
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                await course.measure(psutil.Process(operator), psutil.Process(manager))
        except TimeoutError as error:
            problems.append(str(error) or f"the bench was not through after {WHOLE_SECONDS:.0f} s")
        version = str((await api.get("/version"))["gitVersion"])
    problems += [row.missing for row in course.rows if row.missing]
    if stage.restarts:
        problems.append(f"the operator ended by itself {stage.restarts} times: {_last_words(stage)}")
    head = machine.line(f"Kubernetes {version}", os.getloadavg())
    print("", head, "", render(course.rows), "", NOTES, *course.notes, sep="\n")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _last_words(stage: Stage) -> str:
    """Why the operator ended, as its log says."""
    lines = stage.operator_log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if '"level": "critical"' in line), "its log does not say why")


_begun = time.monotonic()


def _say(message: str) -> None:
    print(f"{time.monotonic() - _begun:5.1f} s  {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
