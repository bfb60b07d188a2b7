"""A hub on loopback, as far as the real hub client asks: one model repository, gated if told so."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/tiny-sdxl"


@contextlib.contextmanager
def serve(folder: Path, *, token: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve *folder* as REPOSITORY; yield the endpoint and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            asked.append(path)
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                return self.reply(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"{}")
            if path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/{COMMIT}"):
                names = [str(one.relative_to(folder)) for one in sorted(folder.rglob("*")) if one.is_file()]
                body = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())
            if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
                files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
                tree = [
                    {"type": "file", "path": str(one.relative_to(folder)), "size": one.stat().st_size, "oid": "0" * 40}
                    for one in files
                ]
                return self.reply(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
            file = folder / path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
            if path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/") and file.is_file():
                content = file.read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                    asked[-1] += f" {part[0]}"
                    return self.reply(206, headers, content[int(part[1]) : int(part[2]) + 1])
                return self.reply(200, headers, content)
            code = "RevisionNotFound" if "/revision/" in path else "RepoNotFound"
            return self.reply(404, {"X-Error-Code": code}, b"{}")

        do_HEAD = do_GET

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
