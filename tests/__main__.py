"""``python -m tests``: every tier, as two pytest processes side by side, for most of their time is waiting.

One starts trainers by hand (and plays what is quick), the other has control planes, with whole runs on them. The second
one's report is printed when the first has ended. The exit status is the worse of the two.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
APART = ("storage", "trainer")
"""Rooms of the integration tier that have no need of a control plane, and start trainers or spoil a store."""
TRAINERS = ["unit", *(f"integration/{room}" for room in APART)]
SERVERS = ["e2e", "chart", "integration"]


def commands() -> tuple[list[str], list[str]]:
    """Return the two command lines; together they name every test, each once."""
    pytest = [sys.executable, "-m", "pytest"]
    ignored = [f"--ignore={HERE / 'integration' / room}" for room in APART]
    return (
        [*pytest, *(str(HERE / place) for place in TRAINERS)],
        [*pytest, *(str(HERE / place) for place in SERVERS), *ignored],
    )


def main() -> int:
    """Run both and return the worse exit status; a signal that ends this process ends both."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    trainers, servers = commands()
    with tempfile.TemporaryFile("w+") as log:
        beside = subprocess.Popen(servers, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = subprocess.run(trainers, check=False).returncode
            print("\n== the tests on servers, which ran beside", flush=True)
            status = max(status, beside.wait())
            log.seek(0)
            sys.stdout.write(log.read())
        finally:
            if beside.poll() is None:
                beside.send_signal(signal.SIGINT)  # pytest then ends its clusters
                beside.wait()
    return status


if __name__ == "__main__":
    sys.exit(main())
