"""``python -m tests.bench.trainer [OUTPUT.json]``: what a step, a start and a checkpoint of the trainer cost.

Counted figures are true anywhere; timed ones are ratios of things that took turns in this one run. With ``REFERENCE``
it runs that training script beside ours, with ``REFERENCE_PYTHON`` by another interpreter. A missed target stands in
the table and changes no exit status.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.bench.machine import Machine
from tests.bench.trainer import notice, overhead, reference
from tests.bench.trainer.attempts import LIMIT, Attempts, Marks
from tests.bench.trainer.figures import WIDTH, Figure, median, render, to_json
from tests.bench.trainer.relay import relay
from tests.bench.trainer.stage import MODEL_SHA256, Stage, digest, stage

ROUNDS = 3
STEPS = 20


def main(output: Path) -> int:
    """Measure everything, print the table, write *output*; return 1 where something did not happen at all."""
    machine = Machine.look()
    figures: list[Figure] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as folder, stage(Path(folder)) as here:
        if (found := digest(here.model)) != MODEL_SHA256:
            problems.append(f"the tiny SDXL has other weights than those that were frozen: {found}")
        parts: list[tuple[str, Callable[[], list[Figure]]]] = [
            ("operations of the real SDXL", _operations),
            ("imports", _imports),
            ("starts and resumes", lambda: _starts(here)),
            ("steps", lambda: _steps(here)),
            ("checkpoints beside training", lambda: overhead.figures(Path(folder))),
            ("signals in all phases", lambda: notice.signals(here)),
            ("large states within the notice", lambda: notice.rescues(here)),
        ]
        for name, measure in parts:
            _say(name)
            try:
                figures += measure()
            except (RuntimeError, LookupError, subprocess.SubprocessError) as error:
                problems.append(f"{name}: {error}")
        figures += _on_a_gpu(problems)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "peft", "transformers"))
    head = machine.line(versions, os.getloadavg())
    output.write_text(json.dumps(to_json(figures, head), indent=1) + "\n", encoding="utf-8")
    print("", textwrap.fill(head, WIDTH), "", render(figures), "", f"JSON: {output}", sep="\n")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _operations() -> list[Figure]:
    found = _child("tests.bench.trainer.operations", "1024")
    one, four, vae = found["one"], found["four"], found["vae"]
    tera = 1e12
    alone = "the same with the VAE in each step"
    return [
        Figure(
            "real SDXL, FLOPs of one image at 1024 px, forward and backward",
            one["flops"] / tera,
            "TFLOP",
            (one["flops"] + vae["flops"]) / tera,
            alone,
        ),
        Figure(
            "real SDXL, operations of one image, views not counted",
            four["operations"] / 4,
            "",
            one["operations"] + vae["operations"],
            "one image at a time, with the VAE",
            note="ours takes the four images of a step in one pass, where memory allows (the plan's micro-batch)",
        ),
    ]


def _imports() -> list[Figure]:
    pairs = [(reference.imports(reference.OURS), reference.imports(reference.NAIVE)) for _ in range(ROUNDS)]
    what = "public names, imported from the packages' roots"

    def seconds(name: str, place: int) -> Figure:
        return Figure.of_pairs(name, [(one[place], other[place]) for one, other in pairs], "s", what, target=0.5)

    return [
        Figure("modules imported", pairs[0][0][0], "", pairs[0][1][0], what, 0.5),
        seconds("imports, seconds of the CPU", 2),
        seconds("imports, seconds", 1),
    ]


def _starts(here: Stage) -> list[Figure]:
    """Cold starts and resumes by turns; one more pair counts the encoders' calls."""
    cold: list[Marks] = []
    resumed: list[Marks] = []
    fetched: list[tuple[int, int]] = []
    with relay(here.s3.endpoint) as counts:
        attempts = Attempts(here.folder)
        for number in range(ROUNDS):
            config = here.config(f"start-{number}", steps=4, every=1, endpoint=counts.endpoint)
            before = counts.down
            cold.append(attempts.run(config, stop_after=2))
            between = counts.down
            resumed.append(attempts.run(config))
            fetched.append((between - before, counts.down - between))
    config = here.config("calls", steps=4, every=1)
    calls = [attempts.run(config, stop_after=2, count=True), attempts.run(config, count=True)]
    counted = [one.all("step")[-1] for one in calls]

    def split(name: str, of: Callable[[Marks], float], target: float | None = None) -> Figure:
        pairs = [(of(one), of(other)) for one, other in zip(resumed, cold, strict=True)]
        return Figure.of_pairs(f"resume: {name}", pairs, "s", "a cold start", target=target)

    mib = 2**20
    return [
        split("import", lambda one: one.importing),
        split("fetch and scan, beside the import", lambda one: one.at("phase Resuming") - one.at("import begins")),
        split("load", lambda one: one.at("loop begins") - one.at("phase Resuming")),
        split("first step", lambda one: one.first_step - one.at("loop begins")),
        split("from imported to first step", lambda one: one.after_imports, 0.3),
        split("from process start to first step", lambda one: one.first_step),
        Figure(
            "resume: modules at the first step",
            resumed[0].first("step")["modules"],
            "",
            cold[0].first("step")["modules"],
            "a cold start",
        ),
        Figure("resume: bytes fetched", fetched[0][1] / mib, "MiB", fetched[0][0] / mib, "a cold start"),
        *(
            Figure(
                f"resume: calls of {name}",
                counted[1]["calls"].get(name, 0),
                "",
                counted[0]["calls"].get(name, 0),
                "",
                0,
            )
            for name in ("vae", "text encoders")
        ),
        Figure(
            "peak memory of an attempt",
            (median([one.all("step")[-1]["peak"] for one in resumed]) or 0) / mib,
            "MiB",
            (median([one.all("step")[-1]["peak"] for one in cold]) or 0) / mib,
            "a cold start",
        ),
    ]


def _steps(here: Stage) -> list[Figure]:
    """Ours and, where it is given, the reference by turns."""
    script = os.environ.get("REFERENCE")
    ours: list[dict[str, Any]] = []
    theirs: list[Marks] = []
    for number in range(ROUNDS):
        ours.append(_child("tests.bench.trainer.steps", str(here.model), str(here.photos), str(STEPS)))
        if script:
            theirs.append(
                reference.run(Path(script), here.model, here.photos, here.folder / f"reference-{number}", STEPS)
            )
    on, off = ([statistics.median(one["seconds"][which]) for one in ours] for which in ("on", "off"))
    turns = list(zip(on, off, strict=True))
    found = [
        Figure.of_pairs("seconds per step of 4 images, caches on", turns, "s", "caches off", note=_per_step(ours[0]))
    ]
    if theirs:
        beside = [statistics.median(one.step_seconds) for one in theirs]
        what, mib = "the reference", 2**20
        with_on, with_off = (list(zip(one, beside, strict=True)) for one in (on, off))
        found += [
            Figure.of_pairs("seconds per step, caches on", with_on, "s", what, target=0.5),
            Figure.of_pairs("seconds per step, caches off", with_off, "s", what, target=1.0),
            Figure("modules at the first step", None, "", float(theirs[0].first("step")["modules"]), what),
            Figure("peak memory", None, "MiB", theirs[0].all("step")[-1]["peak"] / mib, what),
        ]
    return found


def _per_step(one: dict[str, Any]) -> str:
    calls = [
        f"{one[name][which]:.0f} {name} with caches {which}"
        for name in ("vae", "text encoders")
        for which in ("on", "off")
    ]
    return f"pictures and prompts encoded in a step of {one['images']} images: {', '.join(calls)}"


def _on_a_gpu(problems: list[str]) -> list[Figure]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.trainer.gpu"],
        capture_output=True,
        text=True,
        timeout=6 * LIMIT,
        check=False,
    )
    if done.returncode:
        problems.append(f"the GPU: {done.stderr[-2000:]}")
        return []
    return [Figure(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def _child(module: str, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_begun = time.monotonic()


def _say(message: str) -> None:
    print(f"{time.monotonic() - _begun:5.1f} s  {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/bench-trainer.json")))
