"""How others speak to a cluster's supervisor: its state file, and one POST per operation over loopback.

The state file (readable by its owner only) names port and token; whoever can read it may command the cluster.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localcluster.pki import write_private

STATE = "state.json"
CLOCK_STEP = 60.0
STARTING, READY, FAILED, STOPPING = "starting", "ready", "failed", "stopping"


class ControlError(RuntimeError):
    """The supervisor refused an operation, or there is none; the message says why."""


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """Replace a cluster's state file."""
    write_private(directory / STATE, json.dumps(state, indent=1).encode())


def read_state(directory: Path) -> dict[str, Any] | None:
    """Read a cluster's state; None where there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found: dict[str, Any] = json.loads((directory / STATE).read_text())
        return found
    return None


def is_alive(state: dict[str, Any]) -> bool:
    """Whether the supervisor that wrote this state still runs (and is not another process of the same pid)."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(state["pid"])
        # Times of creation are reckoned from the clock, which may be set; a pid is not used again within minutes.
        return abs(process.create_time() - state["created"]) < CLOCK_STEP and process.status() != psutil.STATUS_ZOMBIE
    return False


def call(directory: Path, operation: str, *, timeout: float = 60.0, **arguments: Any) -> Any:
    """Have the supervisor carry out an operation and return its answer. Raises ControlError."""
    state = read_state(directory)
    if state is None or not is_alive(state):
        raise ControlError(f"no cluster runs in {directory}: start one with `localcluster up`")
    if "control" not in state:
        raise ControlError(f"the cluster in {directory} is {state['phase']}: {state.get('message', '')}")
    request = urllib.request.Request(
        f"http://127.0.0.1:{state['control']['port']}/{operation}",
        data=json.dumps(arguments).encode(),
        headers={"Authorization": f"Bearer {state['control']['token']}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with opener.open(request, timeout=timeout) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]
        raise ControlError(text) from error
    except OSError as error:
        raise ControlError(f"the cluster in {directory} does not answer {operation}: {error}") from error


def wait_until_ready(
    directory: Path, supervisor: subprocess.Popen[bytes], limit: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Wait until the supervisor calls its cluster ready. Raises ControlError with its reason."""
    deadline = time.monotonic() + limit
    said = ""
    while True:
        state = read_state(directory)
        if state is not None and state["pid"] == supervisor.pid:
            if state["phase"] == READY:
                return state
            if state["phase"] == FAILED:
                raise ControlError(state["message"])
            if state["message"] != said:
                said = state["message"]
                say(said)
        if supervisor.poll() is not None:
            last = (directory / "logs" / "supervisor.log").read_text(errors="replace")[-2000:]
            raise ControlError(f"the supervisor ended at once:\n{last}")
        if time.monotonic() > deadline:
            raise ControlError(f"the cluster in {directory} was not ready after {limit:.0f} s ({said})")
        time.sleep(0.05)
