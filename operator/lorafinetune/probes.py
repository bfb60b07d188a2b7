"""Plain HTTP for the kubelet and Prometheus: /livez, /readyz, /metrics. Checks are injected; nothing else is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

Check = Callable[[], str | None]
"""None if all is well, else a sentence that says what is not. Must not block."""
Checks = Mapping[str, Check]

IDLE_SECONDS: Final = 30.0
CLOSE_SECONDS: Final = 2.0


class Probes:
    """The running server. Live means worth keeping; ready means worth asking."""

    def __init__(self, registry: CollectorRegistry, *, live: Checks, ready: Checks) -> None:
        self._registry = registry
        self._live = live
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self, *, host: str | None = None, port: int = 0) -> int:
        """Listen on *host* (None: all addresses) and return the port."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=1.0,
            shutdown_timeout=CLOSE_SECONDS,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        listening: int = self._runner.addresses[0][1]
        return listening

    async def close(self) -> None:
        """Stop listening and close."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        return _answer(self._live)

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _answer(self._ready)

    async def _metrics(self, request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encoder(self._registry), headers={"Content-Type": content_type})


def _answer(checks: Checks) -> web.Response:
    failed = [f"{name}: {sentence}" for name, check in checks.items() if (sentence := _ask(check)) is not None]
    return web.Response(text="\n".join(failed or ["ok"]) + "\n", status=503 if failed else 200)


def _ask(check: Check) -> str | None:
    try:
        return check()
    except Exception as error:
        return f"the check itself failed: {type(error).__name__}: {error}"
