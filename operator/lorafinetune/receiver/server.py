"""HTTPS for the judge: one path, one verb, limits on everything that a stranger may send before we know who it is."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final

from aiohttp import web

from lorafinetune.contract.event import EVENTS_PATH
from lorafinetune.receiver.certificate import ServerCertificate
from lorafinetune.receiver.judge import Judge
from lorafinetune.receiver.verdict import Result, Verdict

HANDSHAKE_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 20.0
"""How long a connection may take to bring whole headers, and may stay idle between two requests."""
MAX_HEADER: Final = 16 * 1024
"""Bytes of one header: a token with long names has 2 KiB."""
MAX_HEADERS: Final = 64
MAX_CONNECTIONS: Final = 2048
CLOSE_SECONDS: Final = 3.0

_log = logging.getLogger(__name__)


class Receiver:
    """The running server. Each answer is counted by the label of its result."""

    def __init__(self, judge: Judge, *, count: Callable[[str], None]) -> None:
        self._judge = judge
        self._count = count
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.set_alpn_protocols(["http/1.1"])
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, certificate: ServerCertificate, *, host: str | None = None, port: int = 0) -> int:
        """Listen on *host* (None: all addresses) and return the port."""
        await self.use(certificate)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=1.0,
            max_line_size=1024,
            max_field_size=MAX_HEADER,
            max_headers=MAX_HEADERS,
            auto_decompress=False,
            shutdown_timeout=CLOSE_SECONDS,
        )
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(
            self._accept,
            host,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=CLOSE_SECONDS,
            backlog=256,
        )
        listening: int = self._server.sockets[0].getsockname()[1]
        return listening

    async def use(self, certificate: ServerCertificate) -> None:
        """Show this certificate to every connection from now on; those that are open stay."""
        await asyncio.to_thread(certificate.load_into, self._tls)

    async def close(self) -> None:
        """Stop listening, let the requests under way end, close."""
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _accept(self) -> asyncio.BaseProtocol:
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        if len(server.connections) >= MAX_CONNECTIONS:
            return _Full()
        return server()

    async def _answer(self, request: web.Request) -> web.Response:
        verdict = await self._verdict(request)
        self._count(verdict.result.label)
        if verdict.result not in (Result.ACCEPTED, Result.FAILED):
            _log.debug("event answered %s: %s", verdict.result.label, verdict.message)
        response = web.json_response(verdict.to_json(), status=verdict.result.status, headers=verdict.headers)
        if not request.content.is_eof():
            response.force_close()  # what we do not want to read must not be read as the next request
        return response

    async def _verdict(self, request: web.Request) -> Verdict:
        if request.path != EVENTS_PATH:
            return Verdict(Result.UNKNOWN_PATH, f"there is only {EVENTS_PATH}")
        if request.method != "POST":
            return Verdict(Result.WRONG_METHOD, "events are sent with POST")
        try:
            return await self._judge.judge(request)
        except Exception:
            _log.exception("an event could not be judged")
            return Verdict(Result.FAILED, "the operator has a fault: its log says which", 1.0)


class _Full(asyncio.Protocol):
    """Turns a connection away."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
