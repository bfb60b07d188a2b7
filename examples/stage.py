"""The whole product on one machine: a local cluster, the chart's objects, the operator as a process, data, a model.

The demo plays on it, and the end-to-end tests do. The operator runs with the chart's ServiceAccount and nothing more,
so that a right which the chart forgets is missed here.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from localcluster import binaries
from localcluster.cluster import Cluster
from localcluster.control import ControlError
from localcluster.images import TRAINER, Image, default_images

REPOSITORY = Path(__file__).resolve().parent.parent
SYSTEM = "lorafinetune-system"
RELEASE = "lorafinetune"
MODELS, DATA, LORAS = "models", "training-data", "loras"
SECRET = "bucket-credentials"
OPERATOR, STANDBY = "operator", "operator-standby"
TOKEN_SECONDS = 30 * 86400
"""A kept demo may be looked at for days; a pod would have its token renewed."""
READY_SECONDS = 60.0
STOP_SECONDS = 20.0
TOLERATED = ("nvidia.com/gpu", "kubernetes.azure.com/scalesetpriority", "cloud.google.com/gke-spot")
"""Taints of GPU nodes and of the clouds' spot nodes."""

Object = dict[str, Any]


def images() -> dict[str, Image]:
    """Return the trainer's image for the tiny model: one thread, since more of them only wait for one another."""
    trainer = default_images()[TRAINER]
    return {TRAINER: replace(trainer, environment={**trainer.environment, "OMP_NUM_THREADS": "1"})}


class Stage:
    """A cluster with the operator on it. Leaving it ends every process."""

    def __init__(self, cluster: Cluster | None = None, *, say: Callable[[str], None] = lambda _text: None) -> None:
        self.cluster = cluster or Cluster(images=images(), say=say)
        self._own = cluster is None
        self._say = say
        self._ports = [_free_port(), _free_port()]
        self._options: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        try:
            if self._own:
                self.cluster.start()
            self.install()
            self.start_operator()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the operator and, if it is ours, the cluster."""
        if self._own:
            self.cluster.stop()  # and its guest with it
        else:
            with contextlib.suppress(ControlError):
                self.stop_operator()

    # The operator

    @property
    def operator_log(self) -> Path:
        """What the operator said, one JSON object a line."""
        return self.cluster.directory / "logs" / "operator.log"

    def start_operator(self, *options: str) -> None:
        """Start the operator as the chart's Deployment would, and wait until it is ready.

        If it ends by itself (it does when it loses its Lease), it is started again, as a Deployment's pod is. It is the
        cluster's guest: it ends with the cluster, whatever becomes of this process.
        """
        self._options = options or self._options
        self._start(OPERATOR, self._ports, "operator-0")
        deadline = time.monotonic() + READY_SECONDS
        while self.probe("readyz") != 200:
            if self.restarts:
                raise RuntimeError(f"the operator does not start:\n{self._log_end()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the operator was not ready within {READY_SECONDS:.0f} s:\n{self._log_end()}")
            time.sleep(0.1)

    def start_standby(self) -> None:
        """Start a second replica of the operator, and wait until nothing but the Lease keeps it from leading."""
        ports = [_free_port(), _free_port()]
        self._start(STANDBY, ports, "operator-1")
        self.wait("the standby waits for the Lease", lambda: "Lease" in _ask(ports[1], "readyz")[1], READY_SECONDS, 0.1)

    def _start(self, name: str, ports: list[int], pod: str) -> None:
        webhook, metrics = ports
        kubeconfig = self.cluster.service_account_kubeconfig(SYSTEM, RELEASE, seconds=TOKEN_SECONDS)
        command = [
            sys.executable, "-m", "lorafinetune",
            "--trainer-image", TRAINER,
            "--webhook-listen", f"127.0.0.1:{webhook}",
            "--webhook-url", f"https://127.0.0.1:{webhook}",
            "--webhook-tls-secret", f"{RELEASE}-webhook-tls",
            "--metrics-listen", f"127.0.0.1:{metrics}",
            *self._options,
        ]  # fmt: skip
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY / "operator"),
            "PYTHONUNBUFFERED": "1",
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": SYSTEM,
            "POD_NAME": pod,
        }
        self.cluster.start_guest(name, command, environment, restart=True)

    @property
    def restarts(self) -> int:
        """How often the operator ended by itself and was started again, as its Deployment would."""
        return int(self.cluster.guest(OPERATOR)["restarts"])

    def probe(self, path: str) -> int:
        """Return the status code of one of the operator's health paths; 0 if nobody answers."""
        return _ask(self._ports[1], path)[0]

    def metrics(self) -> str:
        """Return the operator's metrics."""
        return _ask(self._ports[1], "metrics")[1]

    def _log_end(self) -> str:
        return "\n".join(self.operator_log.read_text().splitlines()[-30:])

    @property
    def metrics_url(self) -> str:
        """Where the operator's metrics are."""
        return f"http://127.0.0.1:{self._ports[1]}/metrics"

    @property
    def webhook_address(self) -> str:
        """``host:port`` of the receiver."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def operator_pid(self) -> int:
        """Process id of the operator."""
        return int(self.cluster.guest(OPERATOR)["pid"])

    def kill_operator(self) -> None:
        """End the operator with SIGKILL: it has no chance to say anything, and nobody starts it again."""
        self.cluster.end_guest(OPERATOR, number=signal.SIGKILL)

    def stop_operator(self) -> None:
        """End the operator in good order."""
        self.cluster.end_guest(OPERATOR, grace=STOP_SECONDS)

    def stop_standby(self) -> None:
        """End the second replica in good order."""
        self.cluster.end_guest(STANDBY, grace=STOP_SECONDS)

    # What is there

    def install(self) -> None:
        """Put the chart's objects into the cluster, all but the Deployment: the operator runs beside it."""
        self.cluster.kubectl("create", "namespace", SYSTEM)
        rendered = subprocess.run(
            [
                str(binaries.find("helm")), "template", RELEASE, str(REPOSITORY / "charts" / "lorafinetune"),
                "--namespace", SYSTEM,
            ],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        objects = [one for one in yaml.safe_load_all(rendered) if one and one["kind"] != "Deployment"]
        definitions = [one for one in objects if one["kind"] == "CustomResourceDefinition"]
        self.cluster.apply(*definitions)
        for one in definitions:
            self.cluster.kubectl(
                "wait", "--for=condition=Established", f"crd/{one['metadata']['name']}", "--timeout=30s"
            )
        self.cluster.apply(*(one for one in objects if one not in definitions))

    def add_pool(
        self, name: str, *, price: str, capacity: str = "Spot", product: str = "RTX-4090", default: bool = True
    ) -> None:
        """Make a GPUPool whose nodes carry the label lorafinetune.io/demo-pool."""
        self.cluster.apply(
            {
                "apiVersion": "lorafinetune.io/v1alpha1",
                "kind": "GPUPool",
                "metadata": {"name": name},
                "spec": {
                    "capacityType": capacity,
                    "nodeSelector": {"lorafinetune.io/demo-pool": name},
                    "tolerations": [
                        {"key": key, "operator": "Exists"}
                        for key in TOLERATED
                    ],
                    "gpu": {"product": product},
                    "pricePerHour": price,
                    "default": default,
                },
            }
        )  # fmt: skip

    def add_node(self, name: str, pool: str, **spec: Any) -> str:
        """Add a GPU node of *pool* and wait until it is Ready."""
        labels = {"lorafinetune.io/demo-pool": pool}
        return self.cluster.add_node(name, gpus=1, product="RTX-4090", pool=pool, labels=labels, **spec)

    def add_credentials(self, namespace: str, name: str = SECRET, **changes: str) -> None:
        """Make the Secret by which runs of *namespace* reach the bucket."""
        s3 = self.cluster.s3
        data = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key} | changes
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": namespace, "labels": {"lorafinetune.io/storage": "true"}},
                "stringData": data,
            }
        )

    def run(self, namespace: str, name: str, **changes: Any) -> Object:
        """Return the manifest of a small run on the tiny model; *changes* are merged into its spec."""
        storage = {
            "uri": f"s3://{LORAS}/",
            "endpoint": self.cluster.s3.endpoint,
            "region": "us-east-1",
            "credentialsSecret": SECRET,
        }
        spec: Object = {
            "baseModel": {"source": f"s3://{MODELS}/tiny-sdxl/"},
            "dataset": {"source": f"s3://{DATA}/timber/", "instancePrompt": "photo of timberdog"},
            "training": {
                "steps": 40, "resolution": 64, "gradientAccumulation": 2, "precision": "fp32", "learningRate": 1e-3,
                "lora": {"rank": 4},
            },
            "checkpoint": {"everySteps": 10},
            "storage": storage,
        }  # fmt: skip
        return {
            "apiVersion": "lorafinetune.io/v1alpha1",
            "kind": "LoRAFineTune",
            "metadata": {"name": name, "namespace": namespace},
            "spec": _merged(spec, changes),
        }

    def get(self, namespace: str, name: str) -> Object | None:
        """Return the run, or None if it is gone."""
        text = self.cluster.kubectl("get", "lft", name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else None

    def status(self, namespace: str, name: str) -> Object:
        """Return the run's status; empty where there is none yet."""
        return (self.get(namespace, name) or {}).get("status") or {}

    def keys(self, prefix: str, bucket: str = LORAS) -> list[str]:
        """List the objects below a prefix of a bucket."""
        pages = self.cluster.s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", [])]

    def put_folder(self, folder: Path, bucket: str, prefix: str) -> int:
        """Put every file below *folder* into a bucket; return how many."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            self.cluster.s3.client().upload_file(str(path), bucket, f"{prefix}{path.relative_to(folder).as_posix()}")
        return len(files)

    def wait(self, what: str, check: Callable[[], Any], seconds: float = 120.0, every: float = 0.3) -> Any:
        """Return *check*'s first true answer; TimeoutError, with the operator's last words, if there is none."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = check()
            if answer:
                return answer
            time.sleep(every)
        raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{self._log_end()}")


def photographs(folder: Path, size: int = 256) -> list[Path]:
    """Write a few of the real photographs that scikit-image ships, as JPEG, and return their paths."""
    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in ("chelsea", "astronaut", "coffee", "rocket"):
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        picture.thumbnail((size, size))
        path = folder / f"{name}.jpg"
        picture.save(path, quality=92)
        paths.append(path)
    return paths


def fill_buckets(stage: Stage, scratch: Path) -> None:
    """Make the three buckets, with photographs in one and the tiny model in another."""
    from examples.tiny_sdxl import build

    for bucket in (MODELS, DATA, LORAS):
        stage.cluster.bucket(bucket)
    photographs(scratch / "photographs")
    stage.put_folder(scratch / "photographs", DATA, "timber/")
    build(scratch / "tiny-sdxl")
    stage.put_folder(scratch / "tiny-sdxl", MODELS, "tiny-sdxl/")


@contextlib.contextmanager
def lines_of(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is read line by line, and end it at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.terminate()


def _merged(base: Object, changes: Object) -> Object:
    merged = dict(base)
    for name, value in changes.items():
        known = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(known, dict) and isinstance(value, dict):
            merged[name] = _merged(known, value)
        else:
            merged[name] = value
    return merged


def _ask(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
