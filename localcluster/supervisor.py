"""The process that owns a cluster: everything else of it is a descendant and ends when it ends.

Run as `python -m localcluster.supervisor CONFIG`. With an owner, its standard input is a pipe from the process that
started it: when that closes, the cluster ends. Without one it runs until told to stop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from localcluster import control
from localcluster.api import Api, ApiError
from localcluster.controlplane import ControlPlane
from localcluster.faults import Faults
from localcluster.fleet import Fleet
from localcluster.guests import Guests
from localcluster.images import Image, read_images, write_images
from localcluster.nodespec import NodeSpec
from localcluster.ports import PortClaims
from localcluster.s3 import S3Access, S3Server

log = logging.getLogger("localcluster.supervisor")
GUEST_GRACE = 2.0
"""Seconds that a guest has between SIGTERM and SIGKILL when the cluster ends: what it tidies up goes with it anyway."""


class Supervisor:
    """One cluster's life."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.name: str = config["name"]
        self.directory = Path(config["directory"])
        self.programs = {name: Path(path) for name, path in config["programs"].items()}
        self.has_owner: bool = config["owner"]
        self.images_file = self.directory / "images.json"
        write_images(self.images_file, {n: Image(**image) for n, image in config["images"].items()})
        self.ports = PortClaims()
        self.stopped = asyncio.Event()
        self._owner_watch: asyncio.Task[None] | None = None
        self.token = secrets.token_urlsafe(32)
        self.state: dict[str, Any] = {
            "name": self.name,
            "pid": os.getpid(),
            "created": psutil.Process().create_time(),
        }
        self.s3 = S3Server(self.programs["versitygw"], self.directory / "s3", S3Access.new(self.ports.claim()))
        self.control_plane = ControlPlane(self.programs, self.directory, self.ports, f"localcluster-{self.name}")
        self.api = Api.from_kubeconfig(self.control_plane.kubeconfig)
        self.fleet = Fleet(self.control_plane, self.api, self.directory / "nodes", self.images_file, self.ports)
        self.faults = Faults(self.fleet, self.api)
        self.guests = Guests(self.directory / "logs")

    def show(self, phase: str, message: str) -> None:
        """Write the state that others read."""
        log.info("%s: %s", phase, message)
        self.state |= {"phase": phase, "message": message}
        control.write_state(self.directory, self.state)

    async def run(self) -> int:
        """Bring the cluster up, serve until the end, bring it down; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.stopped.set)
        if self.has_owner:
            await self._watch_owner()
        work = asyncio.create_task(self._serve())
        ended = asyncio.create_task(self.stopped.wait())
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        failure = work.exception() if work.done() else None
        work.cancel()
        if failure:
            log.error("%s", "".join(traceback.format_exception(failure)))
            self.show(control.FAILED, f"{type(failure).__name__}: {failure}")
        else:
            self.show(control.STOPPING, "stopping")
        await asyncio.gather(work, return_exceptions=True)
        await self._shut_down()
        return 1 if failure else 0

    async def _watch_owner(self) -> None:
        """Stop when the owner's end of our standard input closes."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

        async def watch() -> None:
            while await reader.read(1024):
                pass
            self.stopped.set()

        self._owner_watch = asyncio.create_task(watch())

    async def _serve(self) -> None:
        self.show(control.STARTING, "starting etcd, the API server and the S3 server")
        await asyncio.gather(self.s3.start(), self.control_plane.start())
        async with self.api:
            self.show(control.STARTING, "waiting for the controllers")
            await self._wait_controllers()
            application = web.Application(client_max_size=1024 * 1024)
            application.router.add_post("/{operation}", self._handle)
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            port = self.ports.claim()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.state |= {
                "control": {"port": port, "token": self.token},
                "kubeconfig": str(self.control_plane.kubeconfig),
                "server": self.control_plane.server,
                "kubectl": str(self.programs["kubectl"]),
                "authority": str(self.control_plane.authority.certificate),
                "s3": {
                    "endpoint": self.s3.access.endpoint,
                    "access_key": self.s3.access.access_key,
                    "secret_key": self.s3.access.secret_key,
                    "region": self.s3.access.region,
                },
            }
            self.show(control.READY, "ready")
            try:
                await self.stopped.wait()
            finally:
                await self.faults.close()
                await runner.cleanup()

    async def _wait_controllers(self) -> None:
        """Wait until the controller manager has given the default namespace what pods need there."""
        async with asyncio.timeout(60):
            for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
                while True:
                    try:
                        await self.api.get(f"/api/v1/namespaces/default/{path}")
                        break
                    except ApiError as error:
                        if error.status != 404:
                            raise
                    await asyncio.sleep(0.1)

    async def _shut_down(self) -> None:
        await asyncio.gather(self.guests.stop(signal.SIGTERM, GUEST_GRACE), self.fleet.stop(), self.s3.stop())
        await self.control_plane.stop()

    async def _handle(self, request: web.Request) -> web.Response:
        if not secrets.compare_digest(request.headers.get("Authorization", ""), f"Bearer {self.token}"):
            return web.json_response({"error": "the token is wrong"}, status=401)
        operation = self.operations().get(request.match_info["operation"])
        if operation is None:
            return web.json_response({"error": f"there is no operation {request.match_info['operation']}"}, status=404)
        try:
            return web.json_response(await operation(**await request.json()))
        except (ValueError, TypeError, KeyError, TimeoutError, OSError, ApiError) as error:
            log.info("%s failed: %s", request.match_info["operation"], error)
            return web.json_response({"error": str(error) or type(error).__name__}, status=400)

    def operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Everything that can be asked for by name."""
        return {
            "status": self.status,
            "stop": self.stop,
            "release": self.release,
            "guest-start": self.guests.start,
            "guest-end": self.guests.end,
            "node-add": self.node_add,
            "node-remove": self.node_remove,
            "image-add": self.image_add,
            "api-server-kill": self.api_server_kill,
            "api-server-start": self.api_server_start,
            "compact": self.compact,
            "s3-kill": self.s3_kill,
            "s3-start": self.s3_start,
            "preempt": self.faults.preempt,
            "kill": self.faults.kill,
            "cut": self.faults.cut,
            "heal": self.faults.heal,
            "drain": self.faults.drain,
        }

    async def status(self) -> dict[str, Any]:
        """Return what runs, with pids."""
        return {
            "control_plane": {
                name: None if process.exit else process.pid for name, process in self.control_plane.processes.items()
            },
            "s3": self.s3.process.pid if self.s3.process and not self.s3.process.exit else None,
            "nodes": {
                name: {
                    "state": machine.state, "cloud": machine.spec.cloud, "capacity_type": machine.spec.capacity_type,
                    "pool": machine.spec.pool, "gpus": machine.spec.gpus,
                    "pid": None if machine.process.exit else machine.process.pid, "directory": str(machine.directory),
                }
                for name, machine in self.fleet.machines.items()
            },
            "guests": self.guests.show(),
            "faults": self.faults.under_way(),
        }  # fmt: skip

    async def stop(self) -> dict[str, Any]:
        """End the cluster; the answer comes before the end."""
        asyncio.get_running_loop().call_later(0.05, self.stopped.set)
        return {}

    async def release(self) -> dict[str, Any]:
        """Live on without an owner, until told to stop."""
        if self._owner_watch is not None:
            self._owner_watch.cancel()
            self._owner_watch = None
        return {}

    async def node_add(self, wait: bool = True, **spec: Any) -> dict[str, Any]:
        """Add a node."""
        spec["taints"], spec["routes"] = tuple(spec.get("taints", ())), tuple(spec.get("routes", ()))
        machine = await self.fleet.add(NodeSpec(**spec), wait=wait)
        return {"name": machine.spec.name}

    async def node_remove(self, node: str) -> dict[str, Any]:
        """Remove a node."""
        await self.fleet.remove(node)
        return {}

    async def image_add(self, name: str, **image: Any) -> dict[str, Any]:
        """Add or replace an image."""
        write_images(self.images_file, read_images(self.images_file) | {name: Image(**image)})
        return {}

    async def api_server_kill(self) -> dict[str, Any]:
        """End the API server with SIGKILL."""
        await self.control_plane.kill_api_server()
        return {}

    async def api_server_start(self) -> dict[str, Any]:
        """Start the API server again."""
        if not self.control_plane.processes["kube-apiserver"].exit:
            raise ValueError("the API server runs")
        await self.control_plane.start_api_server()
        return {}

    async def s3_kill(self) -> dict[str, Any]:
        """End the S3 server with SIGKILL."""
        await self.s3.stop()
        return {}

    async def s3_start(self) -> dict[str, Any]:
        """Start the S3 server again, on the same port and data."""
        if self.s3.process and not self.s3.process.exit:
            raise ValueError("the S3 server runs")
        await self.s3.start()
        return {}

    async def compact(self) -> dict[str, Any]:
        """Compact etcd."""
        return {"revision": await self.control_plane.compact()}


def main() -> int:
    """Run the supervisor with the configuration that the one argument names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    config = json.loads(Path(sys.argv[1]).read_text())
    os.umask(0o077)

    async def run() -> int:
        return await Supervisor(config).run()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
