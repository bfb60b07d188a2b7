"""A small client of the API server that speaks plain JSON objects.

The typed clients drop fields that they do not know and hide what is sent; a node must send exactly the patches that a
kubelet sends, and read whatever is there.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Json = dict[str, Any]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
REQUEST_SECONDS = 10.0
WATCH_LINE_BYTES = 8 * 1024 * 1024


class ApiError(Exception):
    """The API server refused: `status` is the HTTP status, `reason` and the message are its own."""

    def __init__(self, status: int, body: str) -> None:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = {}
        self.status = status
        self.reason: str = answer.get("reason", "") if isinstance(answer, dict) else ""
        message = answer.get("message", body) if isinstance(answer, dict) else body
        super().__init__(f"{status} {self.reason}: {message[:2000]}")


def unreachable(error: BaseException) -> bool:
    """Whether a request failed because the API server is away or not ready, so that it is worth another try."""
    if isinstance(error, ApiError):
        return error.status in (429, 500, 502, 503, 504)
    return isinstance(error, (aiohttp.ClientError, TimeoutError, OSError))


class Api:
    """One identity at one API server. Use it as an async context manager."""

    def __init__(self, server: str, tls: ssl.SSLContext, token: str | None = None) -> None:
        self.server = server.rstrip("/")
        self._tls = tls
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Api:
        """Make a client from a kubeconfig as `write_kubeconfig` writes it."""
        config = yaml.safe_load(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        tls = ssl.create_default_context(cadata=authority)
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile(suffix=".pem") as pair:  # the ssl module takes files only
                pair.write(base64.b64decode(user["client-certificate-data"]))
                pair.write(b"\n" + base64.b64decode(user["client-key-data"]))
                pair.flush()
                tls.load_cert_chain(pair.name)
        return cls(cluster["server"], tls, user.get("token"))

    async def __aenter__(self) -> Api:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=100)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        self._session = aiohttp.ClientSession(
            self.server, connector=connector, headers=self._headers, timeout=timeout, read_bufsize=WATCH_LINE_BYTES
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, object] | None = None,
    ) -> Json:
        """Send one request and return the answer's object. Raises ApiError, or aiohttp's errors and TimeoutError."""
        assert self._session is not None, "use the client as an async context manager"
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        parameters = {name: str(value) for name, value in (query or {}).items()}
        async with self._session.request(method, path, data=data, params=parameters, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise ApiError(answer.status, text)
            try:
                found: Json = json.loads(text)
            except ValueError:
                return {"text": text}
            return found

    async def get(self, path: str, **query: object) -> Json:
        """Read an object or a list."""
        return await self.request("GET", path, query=query)

    async def create(self, path: str, body: Json) -> Json:
        """POST an object to its collection (or to a subresource such as `eviction` or `token`)."""
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: object, content_type: str = MERGE) -> Json:
        """PATCH an object."""
        return await self.request("PATCH", path, body, content_type=content_type)

    async def delete(self, path: str, *, grace: int | None = None, uid: str | None = None) -> Json:
        """DELETE an object, only if it is the one with this UID where one is given."""
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        return await self.request("DELETE", path, options)

    async def watch(self, path: str, version: str, *, seconds: int = 300, **query: object) -> AsyncIterator[Json]:
        """Yield the events of a watch from `version` on; ends when the server ends it. 410 comes as an ApiError.

        A connection on which nothing comes for longer than `seconds` raises TimeoutError: it is dead.
        """
        assert self._session is not None, "use the client as an async context manager"
        parameters = {name: str(value) for name, value in query.items()}
        parameters |= {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(seconds)}
        parameters["allowWatchBookmarks"] = "true"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=seconds + 30)
        async with self._session.get(path, params=parameters, timeout=timeout) as answer:
            if answer.status >= 400:
                raise ApiError(answer.status, await answer.text())
            async for line in answer.content:
                try:
                    event: Json = json.loads(line)
                except ValueError:
                    return  # the server went in the middle of a line
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), json.dumps(event["object"]))
                yield event
