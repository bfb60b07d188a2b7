"""The node as the API server sees it: the Node object, its conditions, its Lease."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from localcluster.api import STRATEGIC, ApiError, unreachable
from localcluster.node.context import NodeContext
from localcluster.node.podstatus import timestamp

Json = dict[str, Any]
log = logging.getLogger("localcluster.node.registration")
LEASE_SECONDS = 10
LEASE_RENEW = 2.5
STATUS_SECONDS = 3.0
RETRY = 0.5
RUNTIME = "process://0.1.0"


class Registration:
    """Registers the node and keeps it Ready for as long as it runs and reaches the API server."""

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self.config = context.config
        self.path = f"/api/v1/nodes/{self.config.name}"
        self.boot_id = str(uuid.uuid4())
        self.node_uid = ""
        self._look_now = asyncio.Event()

    def look_now(self) -> None:
        """Write the conditions at once rather than at the next turn."""
        self._look_now.set()

    async def register(self) -> None:
        """Create the Node, or take over the one of an earlier boot; tries until the API server lets it."""
        while True:
            try:
                try:
                    node = await self.context.api.create("/api/v1/nodes", self._node())
                except ApiError as error:
                    if error.status != 409:
                        raise
                    node = await self.context.api.get(self.path)
                self.node_uid = node["metadata"]["uid"]
                await self._write_status(node)
                return
            except Exception as error:
                if not unreachable(error) and not isinstance(error, ApiError):
                    raise
                log.warning("not registered: %s", error or type(error).__name__)
            await asyncio.sleep(RETRY)

    def _node(self) -> Json:
        config = self.config
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": config.name,
                "labels": config.labels,
                "finalizers": config.finalizers,
                "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            },
            "spec": {"providerID": config.provider_id, "taints": config.taints},
        }

    def _status(self, conditions: list[Json]) -> Json:
        config = self.config
        return {
            "capacity": config.capacity,
            "allocatable": config.capacity,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": config.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": config.advertised_port}},
            "nodeInfo": {
                "architecture": config.architecture, "bootID": self.boot_id, "containerRuntimeVersion": RUNTIME,
                "kernelVersion": platform.release(), "kubeProxyVersion": "", "kubeletVersion": config.version,
                "machineID": uuid.uuid5(uuid.NAMESPACE_DNS, config.name).hex, "operatingSystem": "linux",
                "osImage": "localcluster (pods are processes)",
                "systemUUID": str(uuid.uuid5(uuid.NAMESPACE_URL, config.name)),
            },
        }  # fmt: skip

    def _conditions(self) -> list[Json]:
        """Return what the kubelet's own conditions should be now."""
        pressure = [
            ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ]
        ready = ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
        if self.context.shutting_down.is_set():
            ready = ("Ready", "False", "KubeletNotReady", "node is shutting down")
        return [
            {"type": kind, "status": status, "reason": reason, "message": message}
            for kind, status, reason, message in [*pressure, ready]
        ]

    async def _write_status(self, node: Json) -> None:
        """Patch the Node's status where it differs; conditions of others are left alone."""
        now = timestamp(time.time())
        before = {condition["type"]: condition for condition in node.get("status", {}).get("conditions") or []}
        wanted = self._conditions()
        same_boot = node.get("status", {}).get("nodeInfo", {}).get("bootID") == self.boot_id
        keys = ("status", "reason", "message")
        if same_boot and all(all(before.get(c["type"], {}).get(k) == c[k] for k in keys) for c in wanted):
            return
        for condition in wanted:
            old = before.get(condition["type"], {})
            same = old.get("status") == condition["status"]
            condition["lastTransitionTime"] = old.get("lastTransitionTime", now) if same else now
            condition["lastHeartbeatTime"] = now
        await self.context.api.patch(f"{self.path}/status", {"status": self._status(wanted)}, STRATEGIC)

    async def keep_status(self) -> None:
        """Keep the conditions true. A Node that somebody deleted stays away, as it does with a running kubelet."""
        while True:
            self._look_now.clear()
            try:
                await self._write_status(await self.context.api.get(self.path))
            except ApiError as error:
                log.warning("status not written: %s", error)
            except Exception as error:
                if not unreachable(error):
                    raise
                log.warning("status not written: %s", error or type(error).__name__)
            try:
                await asyncio.wait_for(self._look_now.wait(), STATUS_SECONDS)
            except TimeoutError:
                continue

    async def keep_lease(self) -> None:
        """Renew the Lease by which the control plane sees that the node lives."""
        base = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        path = f"{base}/{self.config.name}"
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.config.name, "uid": self.node_uid}
        while True:
            begin = time.monotonic()
            renewed = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            spec = {"holderIdentity": self.config.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed}
            try:
                try:
                    await self.context.api.patch(path, {"spec": spec})
                except ApiError as error:
                    if error.status != 404:
                        raise
                    meta = {"name": self.config.name, "namespace": "kube-node-lease", "ownerReferences": [owner]}
                    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
                    await self.context.api.create(base, lease)
            except Exception as error:
                if not unreachable(error) and not isinstance(error, ApiError):
                    raise
                log.warning("lease not renewed: %s", error or type(error).__name__)
            await asyncio.sleep(max(0.1, LEASE_RENEW - (time.monotonic() - begin)))
