"""`Cluster`: a local cluster for tests and the demo, and the same thing for the command line.

with Cluster() as cluster:
    cluster.add_node("gpu-1", cloud="eks-karpenter", capacity_type="spot", gpus=1)
    cluster.kubectl("get", "nodes")
    cluster.faults.preempt("gpu-1", notice=10)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from localcluster import binaries, control, toolchain
from localcluster.images import Image, default_images
from localcluster.kubeconfig import write_kubeconfig
from localcluster.places import cluster_directory, own_environment
from localcluster.s3 import S3Access

TEST_PREFIX = "test-"
READY_SECONDS = 180.0
STOP_SECONDS = 30.0
STALE_SECONDS = 6 * 3600.0
CONFIG = "cluster.json"


def _forget_stale() -> None:
    """Remove what killed test clusters left in the cache."""
    for directory in cluster_directory("x").parent.glob(f"{TEST_PREFIX}*"):
        with contextlib.suppress(OSError):
            old = time.time() - (directory / CONFIG).stat().st_mtime > STALE_SECONDS
            state = control.read_state(directory)
            if old and not (state and control.is_alive(state)):
                shutil.rmtree(directory, ignore_errors=True)


class FaultControl:
    """The faults of a cluster; see `localcluster.faults` for what each does."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def preempt(
        self, node: str, notice: float | None = None, *, replace_after: float | None = None, wait: bool = False
    ) -> None:
        """Reclaim a node with notice, as the cloud that it plays shows it."""
        self._cluster.call("preempt", node=node, notice=notice, replace_after=replace_after, wait=wait, timeout=900)

    def kill(
        self,
        node: str,
        *,
        delete_node_after: float | None = None,
        replace_after: float | None = None,
        wait: bool = False,
    ) -> None:
        """End a node's machine without notice."""
        arguments = {"delete_node_after": delete_node_after, "replace_after": replace_after, "wait": wait}
        self._cluster.call("kill", node=node, timeout=900, **arguments)

    def cut(self, node: str, *, pods: bool = False) -> None:
        """Lose a node silently: it and the API server no longer reach each other, its pods run on."""
        self._cluster.call("cut", node=node, pods=pods)

    def heal(self, node: str) -> None:
        """Bring back a node that was cut off or killed."""
        self._cluster.call("heal", node=node, timeout=120)

    def drain(self, node: str, *, timeout: float = 60.0, wait: bool = True) -> None:
        """Cordon a node and evict its pods through the eviction API."""
        self._cluster.call("drain", node=node, wait=wait, seconds=timeout, timeout=timeout + 30)

    def kill_api_server(self) -> None:
        """End the API server with SIGKILL; it stays away until `start_api_server`."""
        self._cluster.call("api-server-kill")

    def start_api_server(self) -> None:
        """Start the API server again, on the same port and data."""
        self._cluster.call("api-server-start", timeout=180)

    @contextlib.contextmanager
    def without_api_server(self) -> Iterator[None]:
        """Kill the API server for as long as the block goes on; it is started again however the block ends."""
        self.kill_api_server()
        try:
            yield
        finally:
            self.start_api_server()

    def kill_s3(self) -> None:
        """End the S3 server with SIGKILL; it stays away until `start_s3`."""
        self._cluster.call("s3-kill")

    def start_s3(self) -> None:
        """Start the S3 server again, on the same port and data."""
        self._cluster.call("s3-start")

    def compact(self) -> int:
        """Compact etcd, so that older resource versions are 410 Gone; returns the revision."""
        return int(self._cluster.call("compact")["revision"])


class Cluster:
    """One cluster. Start it with `start` (or as a context manager), or find a running one with `attach`."""

    def __init__(
        self,
        name: str | None = None,
        directory: Path | None = None,
        *,
        images: Mapping[str, Image] | None = None,
        say: Callable[[str], None] = toolchain.say,
    ) -> None:
        self.name = name or f"{TEST_PREFIX}{secrets.token_hex(4)}"
        self.directory = (directory or cluster_directory(self.name)).absolute()
        self.images = default_images() | dict(images or {})
        self.say = say
        self.faults = FaultControl(self)
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._state: dict[str, Any] = {}

    @classmethod
    def attach(cls, name: str | None = None, directory: Path | None = None) -> Cluster:
        """Return the cluster that runs under this name or in this directory. Raises ControlError."""
        cluster = cls(name or "default", directory)
        state = control.read_state(cluster.directory)
        if state is None or not control.is_alive(state):
            raise control.ControlError(f"no cluster runs in {cluster.directory}: start one with `localcluster up`")
        cluster.name, cluster._state = state["name"], state
        return cluster

    def start(self, *, detached: bool = False) -> Self:
        """Bring the cluster up; programs that are missing are built first, which takes minutes, once.

        Unless `detached`, it ends with this process, however this process ends. Raises ControlError, BuildError.
        """
        state = control.read_state(self.directory)
        if state is not None and control.is_alive(state):
            raise control.ControlError(f"the cluster {self.name!r} runs already in {self.directory}")
        programs = binaries.find_all(say=self.say)
        begin = time.monotonic()
        self._clear()
        _forget_stale()
        (self.directory / "logs").mkdir(parents=True)
        self.directory.chmod(0o700)
        config = {
            "name": self.name,
            "directory": str(self.directory),
            "programs": {name: str(path) for name, path in programs.items()},
            "images": {name: dataclasses.asdict(image) for name, image in self.images.items()},
            "owner": not detached,
        }
        (self.directory / CONFIG).write_text(json.dumps(config, indent=1))
        with (self.directory / "logs" / "supervisor.log").open("wb") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "localcluster.supervisor", self.directory / CONFIG],
                stdin=subprocess.DEVNULL if detached else subprocess.PIPE, stdout=log, stderr=log,
                env=own_environment(), cwd=self.directory, start_new_session=True,
            )  # fmt: skip
        try:
            self._state = control.wait_until_ready(self.directory, self._supervisor, READY_SECONDS, self.say)
        except BaseException:
            self.stop(keep_files=True)
            raise
        self.say(f"cluster {self.name!r} is ready after {time.monotonic() - begin:.1f} s")
        return self

    def stop(self, *, keep_files: bool = False) -> None:
        """End every process of the cluster and remove its files. Safe to repeat."""
        state = control.read_state(self.directory)
        if self._supervisor is not None:
            if self._supervisor.stdin:
                self._supervisor.stdin.close()
            if self._supervisor.poll() is None:
                self._supervisor.terminate()
            try:
                self._supervisor.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()  # its keepers see that and end everything
                self._supervisor.wait()
            self._supervisor = None
        elif state is not None and control.is_alive(state):
            self._end_detached(state)
        if not keep_files:
            self._clear()

    def _clear(self) -> None:
        """Remove the state directory; refuse one that holds something else. Raises ControlError."""
        if not self.directory.exists():
            return
        if any(self.directory.iterdir()) and not (self.directory / CONFIG).exists():
            raise control.ControlError(f"{self.directory} is not empty and holds no cluster: choose another directory")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end_detached(self, state: dict[str, Any]) -> None:
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(state["pid"], number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not control.is_alive(state):
                    return
                time.sleep(0.05)
        raise control.ControlError(f"the supervisor of {self.name!r} (pid {state['pid']}) does not end")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def call(self, operation: str, *, timeout: float = 60.0, **arguments: Any) -> Any:
        """Have the supervisor carry out an operation. Raises ControlError."""
        return control.call(self.directory, operation, timeout=timeout, **arguments)

    def release(self) -> None:
        """Let the cluster live on when this process ends, until `localcluster down`."""
        self.call("release")
        self._supervisor = None

    def start_guest(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], *, restart: bool = False
    ) -> int:
        """Start a program that ends with the cluster, and return its pid; it logs to `logs/<name>.log`.

        With *restart* it is started again whenever it ends by itself. Raises ControlError.
        """
        return int(
            self.call(
                "guest-start", name=name, command=list(command), environment=dict(environment), restart=restart
            )["pid"]
        )  # fmt: skip

    def end_guest(self, name: str, *, number: int = signal.SIGTERM, grace: float = 20.0) -> None:
        """Signal a guest, kill it where it still runs after *grace* seconds, and do not start it again."""
        self.call("guest-end", name=name, number=int(number), grace=grace, timeout=grace + 30)

    def guest(self, name: str) -> dict[str, Any]:
        """Return a guest's `pid` (None once it has ended, with `code` or `signal`), `restarts` and `log`."""
        return dict(self.status()["guests"][name])

    def status(self) -> dict[str, Any]:
        """Return what runs, with pids."""
        return dict(self.call("status"))

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        return Path(self._state["kubeconfig"])

    @property
    def kubectl_program(self) -> Path:
        """The kubectl of the cluster's own version."""
        return Path(self._state["kubectl"])

    @property
    def kubectl_command(self) -> list[str]:
        """The beginning of a command line: kubectl as this cluster's administrator, with a cache of its own."""
        cache = self.directory / "kubectl-cache"  # kubectl's own is by port, and ports come again
        return [str(self._state["kubectl"]), "--kubeconfig", str(self.kubeconfig), "--cache-dir", str(cache)]

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._state["server"])

    @property
    def s3(self) -> S3Access:
        """The S3 server: endpoint, keys, and `client()` for boto3."""
        return S3Access(**self._state["s3"])

    def bucket(self, name: str) -> str:
        """Make a bucket and return its name."""
        self.s3.client().create_bucket(Bucket=name)
        return name

    def kubectl(
        self, *arguments: str | Path, stdin: str | None = None, check: bool = True, timeout: float = 60.0
    ) -> str:
        """Run kubectl as administrator and return its output. Raises RuntimeError with what kubectl said."""
        answer = subprocess.run(
            [*self.kubectl_command, *map(str, arguments)],
            input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and answer.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(map(str, arguments))}: {answer.stderr.strip() or answer.stdout}")
        return answer.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """Run `kubectl get ... -o json` and return the object."""
        return dict(json.loads(self.kubectl("get", *arguments, "-o", "json")))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(items))

    def add_node(self, name: str, *, wait: bool = True, **spec: Any) -> str:
        """Add a node and wait until it is Ready; `spec` has the fields of `NodeSpec`. Returns its name."""
        return str(self.call("node-add", name=name, wait=wait, timeout=120, **spec)["name"])

    def remove_node(self, name: str) -> None:
        """End a node and remove its Node object."""
        self.call("node-remove", node=name)

    def add_image(
        self, name: str, entrypoint: Sequence[str] = (), command: Sequence[str] = (), environment: Any = None
    ) -> None:
        """Add an image: pods that name it run this program."""
        self.call(
            "image-add", name=name, entrypoint=list(entrypoint), command=list(command), environment=environment or {}
        )

    def service_account_kubeconfig(self, namespace: str, name: str, *, seconds: int = 86400) -> Path:
        """Return a kubeconfig with a token of this ServiceAccount: all that it may do is what its RBAC says."""
        token = self.kubectl("create", "token", name, "--namespace", namespace, "--duration", f"{seconds}s").strip()
        return write_kubeconfig(
            self.directory / f"service-account-{namespace}-{name}.kubeconfig", name=f"{namespace}-{name}",
            server=self.server, authority=Path(self._state["authority"]), token=token, namespace=namespace,
        )  # fmt: skip
