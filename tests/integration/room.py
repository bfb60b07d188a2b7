"""Pods on one node of a local cluster: how they are made, and what is seen of them through the real API server."""

from __future__ import annotations

from typing import Any

from localcluster.cluster import Cluster
from localcluster.images import SHELL
from localcluster.waiting import eventually

Json = dict[str, Any]
NODE = "plain"
FINALIZER = "lorafinetune.io/test"


def pod(name: str, script: str = "sleep 300", **spec: Any) -> Json:
    container = {"name": "main", "image": SHELL, "command": ["sh", "-c"], "args": [script]}
    container |= spec.pop("container", {})
    defaults: Json = {
        "restartPolicy": "Never",
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": defaults | spec}


class Room:
    """One namespace of the cluster."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def apply(self, *objects: Json) -> None:
        for item in objects:
            item["metadata"]["namespace"] = self.namespace
        self.cluster.apply(*objects)

    def pod(self, name: str) -> Json:
        return self.cluster.get("pod", name, "-n", self.namespace)

    def exists(self, name: str) -> bool:
        return bool(self.cluster.kubectl("get", "pod", name, "-n", self.namespace, "--ignore-not-found"))

    def phase(self, name: str, *wanted: str, seconds: float = 60) -> Json:
        def probe() -> Json | None:
            found = self.pod(name)
            return found if found["status"].get("phase") in wanted else None

        return eventually(probe, seconds, f"pod {name} is {' or '.join(wanted)}")

    def state(self, name: str) -> Json:
        return dict(self.pod(name)["status"].get("containerStatuses", [{"state": {}}])[0]["state"])

    def waits(self, name: str, *reasons: str) -> Json:
        def probe() -> Json | None:
            found = self.state(name).get("waiting", {})
            return found if found.get("reason") in reasons else None

        return eventually(probe, 60, f"pod {name} waits with {reasons}")

    def logs(self, name: str, *options: str) -> str:
        return self.cluster.kubectl("logs", name, "-n", self.namespace, *options)

    def log_has(self, name: str, text: str) -> None:
        """Wait for output that says that the process has come so far."""
        asked = ("logs", name, "-n", self.namespace)
        eventually(lambda: text in self.cluster.kubectl(*asked, check=False), 60, f"pod {name} says {text}")

    def let_go(self, name: str) -> None:
        """Remove the finalizer, as the operator does when it has stored how the pod ended."""
        patch = '{"metadata":{"finalizers":null}}'
        self.cluster.kubectl("patch", "pod", name, "-n", self.namespace, "--type=merge", "-p", patch)

    def delete(self, name: str, *options: str) -> None:
        self.cluster.kubectl("delete", "pod", name, "-n", self.namespace, *options)


def terminated(found: Json, index: int = 0) -> Json:
    return dict(found["status"]["containerStatuses"][index]["state"]["terminated"])
