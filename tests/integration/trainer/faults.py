"""A proxy on loopback in front of the real S3 server, that loses answers, refuses, breaks off and stays silent."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

HANG_SECONDS = 60
PIECE = 64 * 1024


class Kind(StrEnum):
    """What goes wrong with a request."""

    LOSE_ANSWER = "the request takes effect, its answer is lost"
    ERROR_AFTER = "the request takes effect, and is answered with 500"
    REFUSE = "the request is answered with 503 and takes no effect"
    DROP = "the connection is closed at once"
    BREAK_OFF = "half of the answer's body arrives"
    HANG = "no answer ever comes"
    HOLD = "the request goes on when the proxy lets it go"
    DENY = "the request is answered with 403"
    UNKNOWN = "the request is answered with 501: this store does not know it"
    OVERRIDE = "the request's condition is ignored"
    GARBLE = "a byte of the answer's body is another one"


@dataclass
class Fault:
    """Happens to the next *times* requests of *method* whose path ends with *suffix* and holds *contains*,
    whose query holds *query*, whose body holds *body*, and among whose headers (in lower case) is *header*.
    """

    kind: Kind
    method: str = "PUT"
    suffix: str = ""
    times: int = 1
    contains: str = ""
    query: str = ""
    body: bytes = b""
    header: str = ""
    override: Callable[[str, bytes], str] | None = None
    """Writes an object whatever its condition says, given key and body, and returns its ETag."""


class Link:
    """A link of limited speed, shared by all connections."""

    def __init__(self) -> None:
        self.bytes_per_second = 0.0
        """0: without a limit."""
        self._free_at = 0.0
        self._lock = threading.Lock()

    def carry(self, count: int) -> None:
        """Return when *count* bytes have passed."""
        if not self.bytes_per_second:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + count / self.bytes_per_second
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))


@dataclass
class Proxy:
    """The running proxy."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    happened: list[Kind] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    link: Link = field(default_factory=Link)
    """What clients send goes through it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    interfere: Callable[[str, str], Kind | None] | None = None
    """Asked about each request, by method and path, before it goes on."""
    served: Callable[[], None] | None = None
    """Called after each request that may have changed something, while no other one goes on."""
    one_at_a_time: threading.RLock = field(default_factory=threading.RLock)

    def next_fault(self, method: str, target: str, body: bytes, headers: set[str]) -> Fault | None:
        path, query = urlsplit(target).path, unquote(urlsplit(target).query)
        kind = self.interfere(method, path) if self.interfere is not None else None
        if kind is not None:
            return Fault(kind)
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                meant = method == fault.method and path.endswith(fault.suffix) and fault.contains in path
                meant = meant and fault.query in query and fault.body in body
                meant = meant and (not fault.header or fault.header in headers)
                if fault.times and meant:
                    fault.times -= 1
                    self.happened.append(fault.kind)
                    return fault
            return None


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in front of *upstream*."""
    host = urlsplit(upstream).netloc
    state = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are written one after the other: 40 ms for each answer

        def handle_one_request(self) -> None:
            with contextlib.suppress(OSError):
                super().handle_one_request()

        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self) -> None:
            body = self.receive(int(self.headers.get("Content-Length", "0")))
            fault = state.next_fault(self.command, self.path, body, {name.lower() for name in self.headers})
            kind = fault.kind if fault else None
            if kind is Kind.HANG:
                time.sleep(HANG_SECONDS)
            if kind in (Kind.DROP, Kind.HANG):
                self.close_connection = True
                return
            if kind is Kind.REFUSE:
                self.reply(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if kind is Kind.DENY:
                self.reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
                return
            if kind is Kind.UNKNOWN:
                self.reply(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
                return
            if kind is Kind.HOLD:
                state.let_go.wait(60)
            if fault and fault.override is not None:
                key = unquote(urlsplit(self.path).path).split("/", 2)[2]
                self.reply(200, {"ETag": fault.override(key, body)}, b"")
                return
            if state.served is not None and self.command != "GET":
                with state.one_at_a_time:
                    status, headers, content = self.forward(body)
                    state.served()
            else:
                status, headers, content = self.forward(body)
            if kind is Kind.LOSE_ANSWER:
                self.close_connection = True
            elif kind is Kind.ERROR_AFTER:
                self.reply(500, {}, b"<Error><Code>InternalError</Code></Error>")
            elif kind is Kind.GARBLE and content:
                self.reply(status, headers, content[:-1] + bytes([content[-1] ^ 1]))
            elif kind is Kind.BREAK_OFF:
                self.reply(status, headers, content, cut=len(content) // 2)
                self.close_connection = True
            else:
                self.reply(status, headers, content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def receive(self, left: int) -> bytes:
            pieces = []
            while left:
                piece = self.rfile.read(min(left, PIECE))
                if not piece:
                    self.close_connection = True
                    raise ConnectionError("the client closed the connection in the middle of a body")
                state.link.carry(len(piece))
                pieces.append(piece)
                left -= len(piece)
            return b"".join(pieces)

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(host, timeout=30)
            with contextlib.closing(connection):
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                return answer.status, dict(answer.headers.items()), answer.read()

        def reply(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[:cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
