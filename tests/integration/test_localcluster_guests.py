"""Guests: programs that live beside a cluster, outlive whoever brought them, and never the cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localcluster import control
from localcluster.cluster import Cluster
from localcluster.places import REPOSITORY
from localcluster.waiting import eventually

ENVIRONMENT = {"PATH": os.defpath}
SLEEP = ["sh", "-c", "echo begun; exec sleep 1000"]


def test_a_guest_runs_logs_and_is_ended(cluster: Cluster) -> None:
    pid = cluster.start_guest("plain", SLEEP, ENVIRONMENT)
    guest = cluster.guest("plain")
    assert guest["pid"] == pid
    eventually(lambda: Path(guest["log"]).read_text() == "begun\n", 60, "it has written its log")
    with pytest.raises(control.ControlError, match=f"plain runs already, as pid {pid}"):
        cluster.start_guest("plain", SLEEP, ENVIRONMENT)
    process = psutil.Process(pid)
    assert process.environ().keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH"}, "nothing of ours reaches it"
    cluster.end_guest("plain")
    assert not process.is_running()
    ended = cluster.guest("plain")
    assert (ended["pid"], ended["signal"], ended["restarts"]) == (None, signal.SIGTERM, 0)
    assert cluster.start_guest("plain", SLEEP, ENVIRONMENT) != pid
    cluster.end_guest("plain", number=signal.SIGKILL)
    assert cluster.guest("plain")["signal"] == signal.SIGKILL


def test_a_guest_that_ends_by_itself_is_started_again_and_one_that_was_ended_is_not(cluster: Cluster) -> None:
    first = cluster.start_guest("lasting", SLEEP, ENVIRONMENT, restart=True)
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: (pid := cluster.guest("lasting")["pid"]) != first and pid, 60, "it runs again")
    assert cluster.guest("lasting")["restarts"] == 1
    cluster.end_guest("lasting")
    assert not psutil.pid_exists(second)
    with pytest.raises(TimeoutError):
        eventually(lambda: cluster.guest("lasting")["pid"], 2, "it runs once more")


def test_what_cannot_be_started_or_is_not_there_is_named(cluster: Cluster) -> None:
    with pytest.raises(control.ControlError, match="/no/such/program"):
        cluster.start_guest("broken", ["/no/such/program"], ENVIRONMENT)
    with pytest.raises(control.ControlError, match="there is no guest 'nobody'"):
        cluster.end_guest("nobody")


OWNER = """
import sys
from pathlib import Path
from localcluster.cluster import Cluster
cluster = Cluster(sys.argv[1], Path(sys.argv[2])).start()
print(cluster.start_guest("guest", ["sleep", "1000"], {"PATH": "/usr/bin:/bin"}, restart=True), flush=True)
sys.stdin.read()
cluster.release()
"""


def test_a_released_cluster_lives_on_with_its_guest_until_it_is_ended(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, "released", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )  # fmt: skip
    out, _ = owner.communicate()  # closes its input, so that it releases the cluster and ends
    guest = psutil.Process(int(out))
    try:
        cluster = Cluster.attach("released", directory)
        assert cluster.guest("guest")["pid"] == guest.pid
        assert "default" in cluster.kubectl("get", "namespaces")
        supervisor = psutil.Process(control.read_state(directory)["pid"])  # type: ignore[index]
        supervisor.kill()  # the worst end: not even then does the guest stay
        eventually(lambda: not guest.is_running(), 60, "the guest has ended")
    finally:
        Cluster("released", directory).stop()
    assert not directory.exists()
