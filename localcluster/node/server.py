"""The node's HTTPS port: container logs for `kubectl logs`, to nobody but the API server."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

from localcluster.controlplane import KUBELET_CLIENT
from localcluster.node.logs import LogOptions, read

if TYPE_CHECKING:
    from localcluster.node.container import Container
    from localcluster.node.context import NodeContext
    from localcluster.node.pod import Pod

FindPod = Callable[[str, str], "Pod | None"]


class LogServer:
    """Serves `/containerLogs/<namespace>/<pod>/<container>` as a kubelet does."""

    def __init__(self, context: NodeContext, find_pod: FindPod) -> None:
        self.context = context
        self.find_pod = find_pod
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen, with the node's own certificate; callers must show one of the cluster's authority."""
        config = self.context.config
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.authority)
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_cert_chain(config.certificate, config.key)
        application = web.Application(middlewares=[self._authenticate])
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        application.router.add_get("/healthz", self._health)
        application.router.add_route("*", "/{rest:.*}", self._unsupported)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", config.port, ssl_context=tls).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner:
            await self._runner.cleanup()

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
        """Let only the API server's own client certificate in: every node and user has one of the same authority."""
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        subject = dict(pair for part in (peer or {}).get("subject", ()) for pair in part)
        if subject.get("commonName") != KUBELET_CLIENT:
            return web.Response(status=403, text="only the API server may ask this node\n")
        return await handler(request)  # type: ignore[no-any-return, misc]

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _unsupported(self, request: web.Request) -> web.Response:
        return web.Response(status=501, text=f"localcluster's nodes are no kubelets: {request.path} is not served\n")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        names = request.match_info
        pod = self.find_pod(names["namespace"], names["pod"])
        if pod is None:
            return web.Response(status=404, text=f"pod {names['namespace']}/{names['pod']} does not exist on this node")
        containers = {container.name: container for container in [*pod.init, *pod.containers]}
        container = containers.get(names["container"])
        if container is None:
            return web.Response(status=404, text=f"container {names['container']} not found in pod {names['pod']}")
        run = container.status["restartCount"]
        previous = request.query.get("previous") == "true"
        if previous:
            run -= 1
        path = container.log_path(run)
        if not path.exists():
            text = _absence(container, names["pod"], previous=previous)
            return web.Response(status=400, text=text)
        try:
            options = log_options(request.query)
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        async for piece in read(path, options, lambda: previous or not container.running):
            await response.write(piece)
        await response.write_eof()
        return response


def _absence(container: Container, pod: str, *, previous: bool) -> str:
    if previous:
        return f'previous terminated container "{container.name}" in pod "{pod}" not found'
    reason = container.status["state"].get("waiting", {}).get("reason", "ContainerCreating")
    return f'container "{container.name}" in pod "{pod}" is waiting to start: {reason}'


def log_options(query: Mapping[str, str]) -> LogOptions:
    """Read a log request's query. Raises ValueError."""
    since = None
    if "sinceSeconds" in query:
        since = time.time() - int(query["sinceSeconds"])
    if "sinceTime" in query:
        since = datetime.datetime.fromisoformat(query["sinceTime"].replace("Z", "+00:00")).timestamp()
    return LogOptions(
        follow=query.get("follow") == "true",
        timestamps=query.get("timestamps") == "true",
        tail_lines=int(query["tailLines"]) if "tailLines" in query else None,
        limit_bytes=int(query["limitBytes"]) if "limitBytes" in query else None,
        since=since,
    )
