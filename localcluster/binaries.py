"""The programs that a cluster is made of: found where they are, else built once from their pinned Go modules.

Order: `KUBEBUILDER_ASSETS` (taken as it is: who sets it means it), `PATH` (only a program that calls itself by the
pinned version), the cache, a build into the cache. The pins are the go.mod files in `localcluster/tools`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from localcluster import toolchain
from localcluster.locks import exclusive
from localcluster.places import TOOLS, cache_directory
from localcluster.toolchain import BuildError, Say, say

__all__ = ["CLUSTER_PROGRAMS", "KUEUE", "PROGRAMS", "BuildError", "Program", "find", "find_all", "source"]


@dataclass(frozen=True)
class Program:
    """One upstream program."""

    name: str
    tools: Path
    """The folder whose go.mod pins it."""
    module: str
    """The Go module whose version is the program's."""
    package: str
    version_arguments: tuple[str, ...] = ("--version",)
    stamp: str = ""
    """The Go variable that the version is linked into, where the program does not know it by itself."""
    minutes: float = 1.0
    """About how long a build takes on two cores, for people who wait."""

    @cached_property
    def version(self) -> str:
        """The pinned version, as `1.36.3`."""
        found = re.search(rf"^\s*{re.escape(self.module)} v(\S+)", (self.tools / "go.mod").read_text(), re.MULTILINE)
        if not found:
            raise BuildError(f"{self.tools / 'go.mod'} pins no version of {self.module}")
        return found[1]

    @cached_property
    def least_go(self) -> tuple[int, ...]:
        """The Go version that the module asks for."""
        found = re.search(r"^go (\S+)", (self.tools / "go.mod").read_text(), re.MULTILINE)
        return tuple(map(int, found[1].split("."))) if found else (1,)

    @property
    def cached(self) -> Path:
        """Where the cache keeps this program at this version."""
        system = f"{platform.system()}-{platform.machine()}".lower()
        return cache_directory() / "programs" / f"{self.name}-{self.version}-{system}"


_KUBERNETES = TOOLS / "kubernetes"
_STAMP = "k8s.io/component-base/version.gitVersion"


def _kubernetes(name: str, minutes: float, version_arguments: tuple[str, ...] = ("--version",)) -> Program:
    module = "k8s.io/kubernetes"
    return Program(name, _KUBERNETES, module, f"{module}/cmd/{name}", version_arguments, _STAMP, minutes)


CLUSTER_PROGRAMS = (
    Program("etcd", TOOLS / "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    Program(
        "versitygw", TOOLS / "versitygw", "github.com/versity/versitygw", "github.com/versity/versitygw/cmd/versitygw"
    ),
    _kubernetes("kube-apiserver", 6.0),
    _kubernetes("kube-controller-manager", 1.5),
    _kubernetes("kube-scheduler", 0.5),
    _kubernetes("kubectl", 0.5, ("version", "--client")),
)
HELM = Program("helm", TOOLS / "helm", "helm.sh/helm/v4", "helm.sh/helm/v4/cmd/helm", ("version", "--short"), "", 3.0)
PROGRAMS = {program.name: program for program in (*CLUSTER_PROGRAMS, HELM)}
KUEUE = Program(
    "kueue",
    TOOLS / "kueue",
    "sigs.k8s.io/kueue",
    "sigs.k8s.io/kueue/cmd/kueue",
    stamp="sigs.k8s.io/kueue/pkg/version.GitVersion",
    minutes=5.0,
)
"""Not among the programs that everybody builds: one long test runs it."""


def find(program: Program | str, say: Say = say) -> Path:
    """Return the path of a program, building it where it is nowhere. Raises BuildError."""
    program = PROGRAMS[program] if isinstance(program, str) else program
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and _is_program(Path(assets) / program.name):
        return (Path(assets) / program.name).absolute()
    on_path = shutil.which(program.name)
    if on_path and _answers_version(Path(on_path), program):
        return Path(on_path).absolute()
    if _is_program(program.cached):
        return program.cached
    lock = cache_directory() / "programs" / f".{program.name}.lock"
    with exclusive(lock, f"building {program.name}", say):
        if not _is_program(program.cached):
            _build(program, say)
    return program.cached


def source(program: Program, say: Say = say) -> Path:
    """Return the folder of the program's pinned Go module, for its files that are no code. Raises BuildError."""
    go = toolchain.find_go(program.least_go, say)
    command = [str(go), "mod", "download", "-json", program.module]
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off"}
    answer = subprocess.run(
        command, cwd=program.tools, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if answer.returncode != 0:
        raise BuildError(f"{program.module} could not be fetched:\n{answer.stderr or answer.stdout}")
    return Path(json.loads(answer.stdout)["Dir"])


def find_all(programs: Iterable[Program | str] = CLUSTER_PROGRAMS, say: Say = say) -> dict[str, Path]:
    """Return the paths of all programs of a cluster by their names; those missing are built one after the other."""
    chosen = [PROGRAMS[program] if isinstance(program, str) else program for program in programs]
    return {program.name: find(program, say) for program in chosen}


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _answers_version(path: Path, program: Program) -> bool:
    """Whether the program calls itself by the pinned version and no other."""
    try:
        answer = subprocess.run(
            [path, *program.version_arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(rf"(?<![\d.]){re.escape(program.version)}(?![\d.])", answer.stdout + answer.stderr) is not None


def _build(program: Program, say: Say) -> None:
    """Build into a file beside the target and rename it: a build that was stopped half-way leaves no program."""
    target = program.cached
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{program.name}.*.partial"):
        stale.unlink()
    partial = target.with_name(f".{program.name}.{os.getpid()}.partial")
    log = target.with_name(f"{target.name}.log")
    go = toolchain.find_go(program.least_go, say)
    flags = "-s -w" + (f" -X {program.stamp}=v{program.version}" if program.stamp else "")
    unset = ("GOOS", "GOARCH", "GOWORK", "GOEXPERIMENT")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}

    def progress(seconds: float) -> None:
        lines = log.read_text(errors="replace").split("\n")
        compiled = sum(bool(line) and not line.startswith("go: ") for line in lines)
        last = lines[-2] if len(lines) > 1 else "starting"
        say(f"building {program.name} v{program.version}: {seconds:.0f} s, {compiled} packages compiled, now {last}")

    say(
        f"building {program.name} v{program.version} from its Go module, once: up to {program.minutes:g} min on 2 cores"
    )
    begin = time.monotonic()
    try:
        status = toolchain.run_kept(
            [go, "build", "-v", "-trimpath", "-ldflags", flags, "-o", partial, program.package],
            cwd=program.tools, env=environment, log=log, progress=progress,
        )  # fmt: skip
        if status != 0:
            raise BuildError(f"{program.name} could not be built (full output: {log}):\n{toolchain.tail(log)}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    say(f"built {program.name} v{program.version} in {time.monotonic() - begin:.0f} s")
