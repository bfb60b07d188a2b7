"""The real Kueue beside the control plane, for plain pods only: its definitions, its webhooks at a URL, its manager."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from examples.stage import Stage
from localcluster import binaries
from localcluster.pki import Authority

Object = dict[str, Any]

SYSTEM = "kueue-system"
GUEST = "kueue"
ETC = """
mount -t tmpfs none /etc && mkdir -p /etc/kueue/metrics && cp -r "$1" /etc/kueue/metrics/certs && shift && exec "$@"
"""
"""Kueue looks for the certificate of its metrics at one fixed place, and is given an /etc of its own for it."""
CONVERTED = ("localqueues", "clusterqueues", "cohorts", "workloads", "multikueueclusters")
"""Kinds that Kueue itself converts between their versions."""


@contextlib.contextmanager
def kueue(stage: Stage, folder: Path) -> Iterator[None]:
    """Run it; at the end its webhooks go first, so that nothing waits for one that nobody serves."""
    program, module = binaries.find(binaries.KUEUE), binaries.source(binaries.KUEUE)
    cluster = stage.cluster
    port, probes = _free_port(), _free_port()
    authority = Authority(folder / "pki")
    issued = authority.issue("tls", "kueue-webhook", hosts=("127.0.0.1",))
    bundle = base64.b64encode(authority.certificate.read_bytes()).decode()

    def at(path: str) -> Object:
        return {"url": f"https://127.0.0.1:{port}{path}", "caBundle": bundle}

    cluster.kubectl("create", "namespace", SYSTEM)
    definitions = [_read(path)[0] for path in sorted((module / "config/components/crd/bases").glob("*.yaml"))]
    for one in definitions:
        if one["spec"]["names"]["plural"] in CONVERTED:
            webhook = {"clientConfig": at("/convert"), "conversionReviewVersions": ["v1"]}
            one["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    # As the server does it: what kubectl remembers of an object has less room than these definitions take.
    for one in definitions:
        path = folder / f"{one['metadata']['name']}.yaml"
        path.write_text(yaml.safe_dump(one))
        cluster.kubectl("apply", "--server-side", "-f", str(path))
    for one in definitions:
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{one['metadata']['name']}", "--timeout=30s")

    config = folder / "kueue.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "config.kueue.x-k8s.io/v1beta2",
                "kind": "Configuration",
                "namespace": SYSTEM,
                "health": {"healthProbeBindAddress": f"127.0.0.1:{probes}"},
                "metrics": {"bindAddress": "0"},
                "webhook": {"port": port, "host": "127.0.0.1", "certDir": str(issued.key.parent)},
                "leaderElection": {"leaderElect": False},
                "internalCertManagement": {"enable": False},
                "integrations": {"frameworks": ["pod"]},
            }
        )
    )
    command = [
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ETC, "sh", str(issued.key.parent), str(program),
        "--config", str(config), "--kubeconfig", str(cluster.kubeconfig), "--feature-gates", "VisibilityOnDemand=false",
    ]  # fmt: skip
    cluster.start_guest(GUEST, command, {"PATH": os.environ["PATH"], "POD_NAMESPACE": SYSTEM})
    webhooks = _read(module / "config/components/webhook/manifests.yaml")
    for configuration in webhooks:
        configuration["webhooks"] = [
            {**one, "clientConfig": at(path)}
            for one in configuration["webhooks"]
            if _is_ours(path := one["clientConfig"]["service"]["path"])
        ]
        for one in configuration["webhooks"]:
            not_here = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", SYSTEM]}
            one["namespaceSelector"] = {"matchExpressions": [not_here]}
    try:
        stage.wait("Kueue's webhooks are served", lambda: _is_served(port), 60)
        cluster.apply(*webhooks)
        yield
    except BaseException as error:
        lines = (cluster.directory / "logs" / f"{GUEST}.log").read_text().splitlines()
        error.add_note("Kueue's last words:\n" + "\n".join(line[:600] for line in lines[-25:]))
        raise
    finally:
        for configuration in webhooks:
            name = configuration["metadata"]["name"]
            cluster.kubectl("delete", configuration["kind"].lower(), name, "--ignore-not-found")
        cluster.end_guest(GUEST)


def queue(stage: Stage, namespace: str, name: str, gpus: int) -> None:
    """Make a queue of *namespace* with a quota of so many GPUs; who has priority there takes places from others."""
    quota = {"name": "any", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": gpus}]}
    stage.cluster.apply(
        {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "any"}},
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "preemption": {"withinClusterQueue": "LowerPriority"},
                "resourceGroups": [{"coveredResources": ["nvidia.com/gpu"], "flavors": [quota]}],
            },
        },
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": name},
        },
    )


def _is_ours(path: str) -> bool:
    return path.endswith("--v1-pod") or "-kueue-x-k8s-io-" in path


def _read(path: Path) -> list[Object]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def _is_served(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
