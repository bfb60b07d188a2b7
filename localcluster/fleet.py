"""The nodes of a cluster as the supervisor holds them: their processes, their links, their Node objects."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localcluster import clouds
from localcluster.api import Api, ApiError, unreachable
from localcluster.binaries import PROGRAMS
from localcluster.controlplane import ControlPlane
from localcluster.kubeconfig import write_kubeconfig
from localcluster.links import Link
from localcluster.nodespec import AgentConfig, NodeSpec, Taint
from localcluster.places import own_environment
from localcluster.ports import PortClaims
from localcluster.process import KeptProcess

READY_SECONDS = 60.0
RUNNING, CUT, GONE = "running", "cut", "gone"


@dataclass(slots=True)
class Machine:
    """One node's machine: the agent's process and the links through which it is reached and reaches others."""

    spec: NodeSpec
    directory: Path
    process: KeptProcess
    to_api: Link
    to_agent: Link
    to_routes: list[Link]
    cut_pods: bool = False

    @property
    def state(self) -> str:
        """`running`, `cut` or `gone`."""
        if self.process.exit is not None:
            return GONE
        return CUT if self.to_api.is_cut else RUNNING

    def links(self) -> list[Link]:
        """All links of the machine."""
        return [self.to_api, self.to_agent, *self.to_routes]


class Fleet:
    """Adds, ends and finds machines."""

    def __init__(self, control_plane: ControlPlane, api: Api, directory: Path, images: Path, ports: PortClaims) -> None:
        self.control_plane = control_plane
        self.api = api
        self.directory = directory
        self.images = images
        self.ports = ports
        self.machines: dict[str, Machine] = {}

    def machine(self, name: str) -> Machine:
        """Return a machine. Raises ValueError where there is none of this name."""
        if name not in self.machines:
            raise ValueError(f"there is no node {name!r}: the nodes are {', '.join(self.machines) or 'none yet'}")
        return self.machines[name]

    def running(self, name: str) -> Machine:
        """Return a machine that has not ended. Raises ValueError."""
        machine = self.machine(name)
        if machine.state == GONE:
            raise ValueError(f"the machine of node {name!r} has ended: `heal` starts it again")
        return machine

    async def add(self, spec: NodeSpec, *, wait: bool = True) -> Machine:
        """Start a node's machine and wait until the node is Ready. Raises ValueError, TimeoutError."""
        cloud = clouds.cloud_of(spec)
        clouds.taints_of(spec)  # refuses bad ones before anything is started
        if spec.name in self.machines and self.machines[spec.name].state != GONE:
            raise ValueError(f"node {spec.name!r} exists already")
        await self.forget(spec.name)
        directory = self.directory / spec.name
        directory.mkdir(parents=True, exist_ok=True)
        pki, name = self.control_plane.authority, spec.name
        to_api = await Link(self.ports.claim(), ("127.0.0.1", self.control_plane.api_port)).start()
        port = self.ports.claim()
        to_agent = await Link(self.ports.claim(), ("127.0.0.1", port)).start()
        routes: dict[str, str] = {}
        to_routes = []
        for route in spec.routes:
            host, _, route_port = route.rpartition(":")
            link = await Link(self.ports.claim(), (host, int(route_port))).start()
            to_routes.append(link)
            routes[route] = f"127.0.0.1:{link.port}"
        identity = pki.issue(f"node-{name}", f"system:node:{name}", groups=("system:nodes",), hosts=("127.0.0.1", name))
        kubeconfig = write_kubeconfig(
            directory / "kubeconfig", name=name, server=f"https://127.0.0.1:{to_api.port}",
            authority=pki.certificate, client=identity,
        )  # fmt: skip
        config = AgentConfig(
            name=name, directory=str(directory), kubeconfig=str(kubeconfig), api_host="127.0.0.1",
            api_port=to_api.port, port=port, advertised_port=to_agent.port, certificate=str(identity.certificate),
            key=str(identity.key), authority=str(pki.certificate), images=str(self.images),
            labels=clouds.labels_of(spec),
            taints=[{"key": t.key, "value": t.value, "effect": t.effect} for t in clouds.taints_of(spec)],
            capacity=clouds.capacity_of(spec), provider_id=clouds.provider_id(spec), finalizers=list(cloud.finalizers),
            routes=routes, token_refresh_fraction=spec.token_refresh_fraction,
            version=f"v{PROGRAMS['kubectl'].version}", architecture=clouds.architecture(),
        )  # fmt: skip
        config.write(directory / "agent.json")
        process = await self._start_agent(directory)
        self.machines[name] = machine = Machine(spec, directory, process, to_api, to_agent, to_routes)
        if wait:
            await self.wait_ready(name)
        return machine

    async def _start_agent(self, directory: Path) -> KeptProcess:
        command: list[str | Path] = [sys.executable, "-m", "localcluster.node", directory / "agent.json"]
        return await KeptProcess.start(command, env=own_environment(), cwd=directory, log=directory / "agent.log")

    async def restart(self, name: str) -> None:
        """Start an ended machine again under the same name: a new boot, what ran on it is lost."""
        machine = self.machine(name)
        for link in machine.links():
            link.heal()
        machine.process = await self._start_agent(machine.directory)
        await self.wait_ready(name)
        await self.taint(name, removed=(clouds.SHUTDOWN_TAINT,))

    async def wait_ready(self, name: str) -> None:
        """Wait until the Node is Ready. Raises TimeoutError with the agent's last lines."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                node = await self.api.get(f"/api/v1/nodes/{name}")
                ready = condition(node, "Ready") == "True"
                if ready and not any(
                    t["key"] == "node.kubernetes.io/not-ready" for t in node["spec"].get("taints", [])
                ):
                    return
            except ApiError as error:
                if error.status != 404 and not unreachable(error):
                    raise
            machine = self.machines[name]
            if machine.process.exit or time.monotonic() > deadline:
                log = (machine.directory / "agent.log").read_text(errors="replace")
                raise TimeoutError(f"node {name} did not become Ready; its agent says:\n{log[-3000:]}")
            await asyncio.sleep(0.1)

    async def power_off(self, name: str) -> None:
        """End a machine with all that runs on it, by SIGKILL, at once."""
        machine = self.machine(name)
        if not machine.process.exit:
            machine.process.kill()
            await machine.process.wait(10)

    async def delete_node(self, name: str) -> None:
        """Remove the Node object, finalizers of the cloud included."""
        try:
            await self.api.patch(f"/api/v1/nodes/{name}", {"metadata": {"finalizers": None}})
            await self.api.delete(f"/api/v1/nodes/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    async def taint(self, name: str, added: Iterable[Taint] = (), *, removed: Iterable[Taint] = ()) -> None:
        """Add and remove taints of a Node, leaving others alone."""
        path = f"/api/v1/nodes/{name}"
        new = [{"key": t.key, "value": t.value, "effect": t.effect} for t in added]
        keys = {taint["key"] for taint in new} | {taint.key for taint in removed}
        while keys:
            try:
                node = await self.api.get(path)
            except ApiError as error:
                if error.status == 404:
                    return  # somebody has removed it
                raise
            # The list of taints is replaced as a whole: the version guards against others' changes.
            taints = [taint for taint in node["spec"].get("taints") or [] if taint["key"] not in keys]
            version = node["metadata"]["resourceVersion"]
            try:
                body = {"metadata": {"resourceVersion": version}, "spec": {"taints": [*taints, *new]}}
                await self.api.patch(path, body)
                return
            except ApiError as error:
                if error.status != 409:
                    raise

    async def forget(self, name: str) -> None:
        """Drop an ended machine's links, ports and files."""
        machine = self.machines.pop(name, None)
        if machine:
            for link in machine.links():
                await link.close()
                self.ports.release(link.port)
            config = json.loads((machine.directory / "agent.json").read_text())
            self.ports.release(config["port"])
            await asyncio.to_thread(shutil.rmtree, machine.directory, ignore_errors=True)

    async def remove(self, name: str) -> None:
        """End a machine and remove its Node: what an autoscaler does with an empty node."""
        await self.power_off(name)
        await self.delete_node(name)
        await self.forget(name)

    def replacement(self, name: str) -> NodeSpec:
        """Return the spec of the node that an autoscaler would bring for this one."""
        machine = self.machine(name)
        if clouds.cloud_of(machine.spec).reclaim.same_name:
            return machine.spec
        base = re.sub(r"-r\d+$", "", name)
        number = 2
        while f"{base}-r{number}" in self.machines:
            number += 1
        return replace(machine.spec, name=f"{base}-r{number}")

    async def stop(self) -> None:
        """End all machines."""
        await asyncio.gather(*(self.power_off(name) for name in list(self.machines)))
        for machine in self.machines.values():
            for link in machine.links():
                await link.close()


def condition(node: dict[str, Any], kind: str) -> str | None:
    """Return the status of a Node's condition, or None."""
    for found in node.get("status", {}).get("conditions", []):
        if found["type"] == kind:
            return str(found["status"])
    return None
