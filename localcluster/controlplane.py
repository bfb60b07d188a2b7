"""The control plane of a cluster: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, all upstream's own.

Flags that are not the defaults are there so that it runs on loopback with certificates of its own, and so that a lost
node is noticed in seconds. Nothing of what Kubernetes does is switched off.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp

from localcluster.api import Api, unreachable
from localcluster.kubeconfig import write_kubeconfig
from localcluster.pki import Authority, service_account_key
from localcluster.ports import PortClaims
from localcluster.process import KeptProcess

READY_SECONDS = 120.0
API_SERVER_GRACE = 3.0
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
"""The name by which the API server shows itself to a node's port."""
NODE_MONITOR_GRACE = 16
NODE_MONITOR_PERIOD = 2


class ControlPlane:
    """Starts, stops and breaks the control plane, with its state in one directory."""

    def __init__(self, programs: dict[str, Path], directory: Path, ports: PortClaims, name: str) -> None:
        self.programs = programs
        self.directory = directory
        self.name = name
        self.authority = Authority(directory / "pki")
        self.api_port = ports.claim()
        self.etcd_port, self.etcd_peer_port = ports.claim(), ports.claim()
        self.manager_port, self.scheduler_port = ports.claim(), ports.claim()
        self.server = f"https://127.0.0.1:{self.api_port}"
        self.processes: dict[str, KeptProcess] = {}
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        local = ("127.0.0.1", "::1", "localhost")
        service = ("10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        self.serving = self.authority.issue("apiserver", "kube-apiserver", hosts=local + service)
        self.etcd_certificate = self.authority.issue("etcd", "etcd", hosts=local)
        self.kubelet_client = self.authority.issue("kubelet-client", KUBELET_CLIENT)
        self.service_account_key = service_account_key(directory / "pki" / "sa.key")
        self.kubeconfig = self._kubeconfig("admin", "localcluster-admin", ("system:masters",))
        self.manager_kubeconfig = self._kubeconfig("controller-manager", "system:kube-controller-manager")
        self.scheduler_kubeconfig = self._kubeconfig("scheduler", "system:kube-scheduler")

    def _kubeconfig(self, file: str, user: str, groups: tuple[str, ...] = ()) -> Path:
        return write_kubeconfig(
            self.directory / f"{file}.kubeconfig", name=self.name, server=self.server,
            authority=self.authority.certificate, client=self.authority.issue(file, user, groups=groups),
        )  # fmt: skip

    async def start(self) -> None:
        """Start all four and wait until the API server is ready. Raises TimeoutError with the log's last lines."""
        await self._start_etcd()
        await self.start_api_server()

    async def _run(self, name: str, arguments: list[Any]) -> None:
        home = {"PATH": os.defpath, "HOME": str(self.directory), "TMPDIR": str(self.directory)}
        log = self.logs / f"{name}.log"
        self.processes[name] = await KeptProcess.start([self.programs[name], *arguments], env=home, log=log)

    async def _start_etcd(self) -> None:
        client, peer = f"https://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self.etcd_peer_port}"
        await self._run("etcd", [
            "--name", "local", "--data-dir", self.directory / "etcd", "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"local={peer}",
            "--client-cert-auth", "--trusted-ca-file", self.authority.certificate,
            "--cert-file", self.etcd_certificate.certificate, "--key-file", self.etcd_certificate.key,
            "--auto-compaction-retention", "0", "--log-level", "warn",
        ])  # fmt: skip

    async def start_api_server(self) -> None:
        """Start the API server (again), always on the same port and data, wait until it is ready, start its clients."""
        pki = self.authority
        await self._run("kube-apiserver", [
            "--etcd-servers", f"https://127.0.0.1:{self.etcd_port}", "--etcd-cafile", pki.certificate,
            "--etcd-certfile", self.etcd_certificate.certificate, "--etcd-keyfile", self.etcd_certificate.key,
            "--secure-port", self.api_port, "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
            "--endpoint-reconciler-type", "none",
            "--tls-cert-file", self.serving.certificate, "--tls-private-key-file", self.serving.key,
            "--client-ca-file", pki.certificate,
            "--kubelet-certificate-authority", pki.certificate,
            "--kubelet-client-certificate", self.kubelet_client.certificate,
            "--kubelet-client-key", self.kubelet_client.key,
            "--kubelet-preferred-address-types", "InternalIP",
            "--service-account-issuer", "https://kubernetes.default.svc",
            "--service-account-key-file", self.service_account_key,
            "--service-account-signing-key-file", self.service_account_key,
            "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
            "--service-cluster-ip-range", "10.96.0.0/16", "--allow-privileged", "--profiling=false",
            "--cert-dir", pki.directory,
        ])  # fmt: skip
        await self._wait_ready()
        await asyncio.gather(self._start_manager(), self._start_scheduler())

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        async with Api.from_kubeconfig(self.kubeconfig) as api:
            while True:
                try:
                    await api.get("/readyz")
                    return
                except Exception as error:
                    ended = self.processes["kube-apiserver"].exit or self.processes["etcd"].exit
                    if not unreachable(error) or ended or time.monotonic() > deadline:
                        raise TimeoutError(f"kube-apiserver is not ready: {error}\n{self.last_lines()}") from error
                await asyncio.sleep(0.1)

    def last_lines(self) -> str:
        """Return the last lines of the logs of etcd and the API server."""
        found = []
        for name in ("etcd", "kube-apiserver"):
            log = self.logs / f"{name}.log"
            if log.exists():
                found.append(f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(found)

    async def _start_manager(self) -> None:
        await self._run("kube-controller-manager", [
            "--kubeconfig", self.manager_kubeconfig, "--use-service-account-credentials",
            "--service-account-private-key-file", self.service_account_key,
            "--root-ca-file", self.authority.certificate, "--leader-elect=false",
            "--bind-address", "127.0.0.1", "--secure-port", self.manager_port, "--cert-dir", self.directory / "pki",
            "--node-monitor-grace-period", f"{NODE_MONITOR_GRACE}s", "--node-monitor-period", f"{NODE_MONITOR_PERIOD}s",
            "--node-eviction-rate", "10", "--profiling=false", "--kube-api-qps", "200", "--kube-api-burst", "400",
        ])  # fmt: skip

    async def _start_scheduler(self) -> None:
        await self._run("kube-scheduler", [
            "--kubeconfig", self.scheduler_kubeconfig, "--leader-elect=false",
            "--bind-address", "127.0.0.1", "--secure-port", self.scheduler_port, "--cert-dir", self.directory / "pki",
            "--profiling=false",
        ])  # fmt: skip

    async def kill_api_server(self) -> None:
        """End the API server with SIGKILL, as a crash would; `start_api_server` brings it back.

        Controller manager and scheduler end with it, as they do elsewhere when they cannot renew their Leases. Here
        they hold none: they would ask less and less often, and not notice its return for up to a minute.
        """
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            self.processes[name].kill()
            await self.processes[name].wait(30)

    async def compact(self) -> int:
        """Compact etcd to its newest revision and return it: older resource versions are then 410 Gone."""
        tls = ssl.create_default_context(cafile=str(self.authority.certificate))
        tls.load_cert_chain(self.etcd_certificate.certificate, self.etcd_certificate.key)
        base = f"https://127.0.0.1:{self.etcd_port}/v3/kv"
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session:
            async with session.post(f"{base}/range", json={"key": "AA==", "count_only": True}) as answer:
                answer.raise_for_status()
                revision = int(json.loads(await answer.text())["header"]["revision"])
            async with session.post(f"{base}/compaction", json={"revision": revision, "physical": True}) as answer:
                answer.raise_for_status()
        return revision

    async def stop(self) -> None:
        """End all: the API server before etcd, since it hangs for ever when etcd has gone first."""
        for names in (("kube-controller-manager", "kube-scheduler"), ("kube-apiserver",), ("etcd",)):
            running = [self.processes[name] for name in names if name in self.processes]
            await asyncio.gather(*(p.end(signal.SIGTERM, API_SERVER_GRACE) for p in running if not p.exit))
