"""A receiver of events on loopback, with TLS of an authority of its own, that answers what the test says."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lorafinetune.receiver.certificate import make_authority, make_server_certificate

Event = dict[str, Any]


@dataclass
class Receiver:
    """What arrived, and what is answered."""

    url: str
    authority: str
    """PEM."""
    answer: Callable[[Event], int] = lambda _: 200
    retry_after: str = "0"
    events: list[Event] = field(default_factory=list)
    """All that arrived, repeats too."""
    tokens: list[str] = field(default_factory=list)
    hang: float = 0.0

    @property
    def accepted(self) -> list[Event]:
        """Each event once, in the order in which it arrived first."""
        found = {(event["attempt"], event["sequence"]): event for event in reversed(self.events)}
        return [event for event in self.events if found.get((event["attempt"], event["sequence"])) is event]


@contextlib.contextmanager
def receive(folder: Path) -> Iterator[Receiver]:
    """Run a receiver."""
    now = datetime.now(UTC)
    authority = make_authority(now)
    certificate = make_server_certificate(authority, ["127.0.0.1"], now)
    (folder / "server.pem").write_bytes(certificate.certificate)
    (folder / "server.key").write_bytes(certificate.key)
    state = Receiver("", authority.certificate.decode())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/events" or self.headers["Content-Type"] != "application/json":
                self.send_error(400)
                return
            event = json.loads(body)
            state.events.append(event)
            state.tokens.append(self.headers["Authorization"])
            time.sleep(state.hang)
            status = state.answer(event)
            text = json.dumps({"kind": "Status", "message": f"the receiver says {status}"}).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Retry-After", state.retry_after)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            """Connections that a client gives up are part of the tests."""

        def finish_request(self, request: Any, client_address: Any) -> None:
            # The handshake in the connection's thread, not in the one that accepts.
            with contextlib.suppress(OSError), context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"https://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
