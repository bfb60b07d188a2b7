"""`python -m examples.demo [--keep]`: one run on a local cluster, preempted twice, to a verified LoRA."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from examples.demo import stagehands
from examples.demo.error import DemoError
from examples.demo.play import perform
from examples.demo.scene import Scene
from examples.demo.screen import Screen
from examples.demo.stagehands import command_line, shown
from examples.stage import images
from localcluster.cluster import Cluster
from localcluster.control import ControlError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal has asked the demo to end. Not an Exception: nobody on the way may take it for an error."""


class Signals:
    """Turns the first signal into Stopped, wherever the demo is; further ones do not disturb the ending."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.ending = False
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.ending:
            self.number = number
            raise Stopped


def main() -> int:
    """Play the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave cluster, operator and run up at the end")
    keep = parser.parse_args().keep
    signals, screen = Signals(), Screen()
    cluster: Cluster | None = None
    folder = Path()
    kept = False
    try:
        folder = stagehands.fresh_folder(name := stagehands.free_name())
        cluster = Cluster(name, images=images(), say=screen.note)
        perform(Scene(cluster, screen, folder, keep))
        kept = keep and _release(cluster)
        code = 0
    except Stopped:
        screen.section("Ending")
        code = 128 + (signals.number or 0)
    except Exception as error:
        code = 1
        _complain(error, screen, cluster, folder)
        kept = keep and cluster is not None and _release(cluster)
    finally:
        signals.ending = True
        if cluster is not None and not kept:
            cluster.stop()
    if cluster is not None and kept:
        screen.section("Cluster, operator and run go on, as KEEP=1 says. To end them:")
        screen.command(command_line("down", "--name", cluster.name))
    else:
        screen.say(f"All that the demo started has ended; {shown(folder)}/ is what is left.")
    if screen.broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
    return code


def _release(cluster: Cluster) -> bool:
    """Let the cluster live on; False where there is none any more."""
    try:
        cluster.release()
    except ControlError:
        return False
    return True


def _complain(error: Exception, screen: Screen, cluster: Cluster | None, folder: Path) -> None:
    """Say in one sentence what went wrong, and where more is written."""
    logs = folder / "logs"
    if cluster is not None:
        stagehands.keep_logs(cluster, logs)
    if logs.is_dir():
        (logs / "demo.log").write_text("".join(traceback.format_exception(error)))
    text = (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")
    if not isinstance(error, (DemoError, RuntimeError, OSError)):  # whose messages do not speak for themselves
        text = f"{text} ({type(error).__name__})"
    screen.section("The demo could not go on")
    screen.note(f"{text}. The logs are in {shown(logs)}/.")


if __name__ == "__main__":
    sys.exit(main())
