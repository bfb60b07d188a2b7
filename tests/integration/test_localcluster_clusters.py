"""Clusters as wholes: the control plane's promises, several side by side, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import botocore.exceptions
import psutil
import pytest

from localcluster import control
from localcluster.cluster import Cluster
from localcluster.images import SHELL
from localcluster.places import REPOSITORY
from localcluster.ports import PortClaims
from localcluster.waiting import eventually

Json = dict[str, Any]


def test_the_s3_server_keeps_conditional_writes_and_refuses_wrong_keys(cluster: Cluster) -> None:
    bucket = cluster.bucket("conditional")
    client = cluster.s3.client()
    client.put_object(Bucket=bucket, Key="head", Body=b"one", IfNoneMatch="*")
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="head", Body=b"two", IfNoneMatch="*")
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="head", Body=b"two", IfMatch='"0123456789abcdef0123456789abcdef"')
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    wrong = type(cluster.s3)(cluster.s3.endpoint, cluster.s3.access_key, "wrong").client()
    with pytest.raises(botocore.exceptions.ClientError, match="SignatureDoesNotMatch"):
        wrong.list_objects_v2(Bucket=bucket)


def test_the_s3_server_can_be_away_and_comes_back_with_its_data(cluster: Cluster) -> None:
    bucket = cluster.bucket("away")
    cluster.s3.client().put_object(Bucket=bucket, Key="kept", Body=b"x")
    cluster.faults.kill_s3()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(cluster.s3.endpoint.rpartition(":")[2])), timeout=5)
    cluster.faults.start_s3()
    assert cluster.s3.client().get_object(Bucket=bucket, Key="kept")["Body"].read() == b"x"
    with pytest.raises(control.ControlError, match="the S3 server runs"):
        cluster.faults.start_s3()


def test_no_key_stands_on_a_command_line(cluster: Cluster) -> None:
    server = psutil.Process(cluster.status()["s3"])
    assert cluster.s3.secret_key not in " ".join(server.cmdline())
    assert cluster.s3.access_key not in " ".join(server.cmdline())
    assert (cluster.directory / "state.json").stat().st_mode & 0o077 == 0
    assert cluster.directory.stat().st_mode & 0o077 == 0


def test_a_service_account_may_do_what_its_role_says_and_no_more(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "serviceaccount", "operator", "-n", namespace)
    cluster.kubectl("create", "role", "reader", "--verb=list", "--resource=pods", "-n", namespace)
    cluster.kubectl(
        "create", "rolebinding", "r", "--role=reader", f"--serviceaccount={namespace}:operator", "-n", namespace
    )
    path = cluster.service_account_kubeconfig(namespace, "operator")
    assert path.stat().st_mode & 0o077 == 0

    def kubectl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [cluster.kubectl_program, "--kubeconfig", path, *arguments], capture_output=True, text=True, check=False
        )

    assert kubectl("get", "pods").returncode == 0
    refused = kubectl("get", "secrets")
    assert refused.returncode != 0
    assert f'User "system:serviceaccount:{namespace}:operator" cannot list resource "secrets"' in refused.stderr


def test_the_api_server_comes_back_on_its_port_with_its_data(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "configmap", "kept", "--from-literal=a=b", "-n", namespace)
    before = cluster.get("configmap", "kept", "-n", namespace)["metadata"]["resourceVersion"]
    with cluster.faults.without_api_server():
        with pytest.raises(RuntimeError, match="was refused"):
            cluster.kubectl("get", "namespaces")
        assert cluster.status()["control_plane"]["kube-apiserver"] is None
    assert cluster.get("configmap", "kept", "-n", namespace)["data"] == {"a": "b"}
    assert cluster.faults.compact() > int(before)
    watch = f"/api/v1/namespaces/{namespace}/configmaps?watch=1&timeoutSeconds=5&resourceVersion=1"
    assert json.loads(cluster.kubectl("get", "--raw", watch))["object"]["reason"] == "Expired"
    with pytest.raises(control.ControlError, match="the API server runs"):
        cluster.faults.start_api_server()


def test_a_stranger_cannot_command_a_cluster(cluster: Cluster) -> None:
    state = control.read_state(cluster.directory)
    assert state is not None
    request = urllib.request.Request(f"http://127.0.0.1:{state['control']['port']}/stop", data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)
    with pytest.raises(control.ControlError, match="there is no operation dance"):
        cluster.call("dance")


OWNER = """
import sys
from pathlib import Path
from localcluster.cluster import Cluster
cluster = Cluster(sys.argv[1], Path(sys.argv[2])).start()
cluster.add_node("n1", gpus=1)
print("ready", flush=True)
sys.stdin.read()
"""


def family(pid: int) -> list[psutil.Process]:
    """The process and everything that came from it, with the end of each of them still to be seen."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def start_owner(name: str, directory: Path) -> subprocess.Popen[str]:
    """A process that owns a cluster with one node and one pod whose child has a session of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, name, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


def start_pod(cluster: Cluster) -> list[int]:
    """Start a pod; returns the pids of its main process and of a child that has left its session."""
    main = {"name": "main", "image": SHELL, "command": ["sh", "-c", "setsid sleep 600 & echo $$$$ $!; wait"]}
    spec = {"containers": [main], "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 600}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec})
    return [int(word) for word in eventually(lambda: cluster.kubectl("logs", "p", check=False), 60, "it runs").split()]


@pytest.mark.parametrize("victim", ["supervisor", "owner"])
def test_clusters_live_side_by_side_and_one_killed_leaves_no_process(
    cluster: Cluster, tmp_path: Path, victim: str
) -> None:
    directory = tmp_path / "a directory with a long name, as temporary ones have, " / ("and deep " * 5).strip()
    with start_owner(f"second-{victim}", directory) as owner:
        second = Cluster.attach(directory=directory)
        assert second.server != cluster.server
        assert second.s3.endpoint != cluster.s3.endpoint
        state = control.read_state(directory)
        assert state is not None
        pods = start_pod(second)
        everyone = family(state["pid"])
        assert set(pods) <= {process.pid for process in everyone}
        assert len(everyone) > 15
        os.kill(state["pid"] if victim == "supervisor" else owner.pid, signal.SIGKILL)
        if victim == "supervisor":
            everyone = everyone[1:]  # itself is a zombie as long as its owner does not look
        assert not psutil.wait_procs(everyone, timeout=15)[1]
        with pytest.raises(control.ControlError, match="start one with `localcluster up`"):
            Cluster.attach(directory=directory)
        Cluster(second.name, directory).stop()
        assert not directory.exists()
        owner.kill()
    assert "default" in cluster.kubectl("get", "namespaces"), "the first cluster lives on"


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(control.ControlError, match="is not empty and holds no cluster"):
        Cluster("x", tmp_path).start()
    with pytest.raises(control.ControlError, match="is not empty and holds no cluster"):
        Cluster("x", tmp_path).stop()
    assert (tmp_path / "thesis.txt").exists()


def test_ports_are_claimed_once(tmp_path: Path) -> None:
    first, second = PortClaims(tmp_path), PortClaims(tmp_path)
    ports = [claims.claim() for claims in (first, second) for _ in range(50)]
    assert len(set(ports)) == 100
    assert not second._lock(ports[0])
    for port in ports:
        first.release(port)
        second.release(port)
    assert second._lock(ports[0])
    second.release(ports[0])


def command(*arguments: str | Path, check: bool = True) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    answer = subprocess.run(
        [sys.executable, "-m", "localcluster", *arguments], capture_output=True, text=True, env=environment,
        timeout=240, check=False,
    )  # fmt: skip
    assert not check or answer.returncode == 0, answer.stderr
    return answer.stdout + ("" if check else answer.stderr)


def test_the_command_line_from_up_to_down(tmp_path: Path) -> None:
    place = ("--dir", tmp_path / "cluster", "--name", "by-hand")
    assert "start one with `localcluster up`" in command("status", *place, check=False)
    exports = command("up", *place, "--bucket", "loras")
    assert f"export KUBECONFIG={tmp_path}" in exports
    assert "export AWS_SECRET_ACCESS_KEY=" in exports
    assert command("env", *place) == exports
    try:
        assert "runs already" in command("up", *place, check=False)
        command("node", *place, "add", "gpu-1", "--cloud", "eks-managed", "--spot", "--gpus", "1", "--label", "a=b")
        command("node", "add", "cpu-1", *place)
        assert "node/gpu-1" in command("kubectl", *place, "--", "get", "nodes", "-l", "a=b", "-o", "name")
        command("cut", *place, "cpu-1")
        command("kill", *place, "gpu-1")
        seen = command("status", *place)
        assert "gone     eks-managed, spot, pool default, 1 GPUs" in seen
        assert "cut      generic, on-demand" in seen
        command("heal", *place, "cpu-1")
        assert json.loads(command("status", *place, "--json"))["nodes"]["cpu-1"]["state"] == "running"
        command("drain", *place, "cpu-1")
        assert "there is no node 'x'" in command("preempt", *place, "x", check=False)
        command("node", *place, "remove", "gpu-1")
        state = control.read_state(tmp_path / "cluster")
        assert state is not None
        everyone = family(state["pid"])
    finally:
        command("down", *place)
    assert not psutil.wait_procs(everyone, timeout=5)[1]
    assert not (tmp_path / "cluster").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_cluster_in_the_foreground(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    arguments = [sys.executable, "-m", "localcluster", "up", "--foreground", "--dir", tmp_path / "c", "--name", "fore"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        if number == signal.SIGINT:  # in the middle of the start
            state = eventually(lambda: control.read_state(tmp_path / "c"), 60, "the supervisor is there")
        else:
            while b"Ctrl-C" not in process.stdout.readline():
                assert process.poll() is None
            state = control.read_state(tmp_path / "c") or {}
        everyone = family(state["pid"])
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert not psutil.wait_procs(everyone, timeout=5)[1]
    assert not (tmp_path / "c").exists()
