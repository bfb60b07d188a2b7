"""The operator's only way to the API server: few verbs, raw JSON, every call bounded, errors by what to do about them.

Credentials, TLS and the HTTP session are the official client's (``kubernetes.aio``); its models are left aside, since
decoding them costs more than the request (measured: a list of 1,551 pods takes 0.82 s CPU as models, 0.10 s raw).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.request import getproxies

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from lorafinetune import __version__
from lorafinetune.kube import errors
from lorafinetune.kube.resource import (
    CONFIGMAPS,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    POOLS,
    RUNS,
    SECRETS,
    TOKENREVIEWS,
    Resource,
)

__all__ = [
    "CONFIGMAPS",
    "EVENTS",
    "LEASES",
    "NODES",
    "PODS",
    "POOLS",
    "RUNS",
    "SECRETS",
    "TOKENREVIEWS",
    "Cluster",
    "Object",
    "Resource",
    "Review",
]

Object = dict[str, Any]
"""A Kubernetes object as its JSON says."""
OnRequest = Callable[[str, str], None]
"""Called with (HTTP method, status code or ``"<error>"``) after each request."""

CONNECT_TIMEOUT: Final = 5.0
REQUEST_TIMEOUT: Final = 30.0
WATCH_SECONDS: Final = (300, 600)
"""A watch lives for a random time in between, so that those of many processes do not end together."""
WATCH_SILENCE: Final = 90.0
"""Seconds without even a bookmark (the server sends one a minute) after which a watch counts as dead."""
ATTEMPTS: Final = 3
MAX_PAUSE: Final = 5.0
"""Seconds between two tries at most, whatever Retry-After says: who needs longer has a queue of its own."""

_JSON: Final = "application/json"
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True, slots=True)
class Review:
    """Whose token it is; pod name and UID are empty for a token that is bound to no pod."""

    username: str
    namespace: str
    service_account: str
    pod_name: str
    pod_uid: str


class Cluster:
    """A connection to one API server. Belongs to the event loop that made it."""

    def __init__(
        self,
        api: ApiClient,
        *,
        kubeconfig: str | None = None,
        on_request: OnRequest | None = None,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        self._api = api
        self._api.user_agent = f"lorafinetune/{__version__}"
        self._kubeconfig = kubeconfig
        self._closed = False
        self._on_request = on_request or (lambda _method, _code: None)
        self._limits = aiohttp.ClientTimeout(total=request_timeout, sock_connect=CONNECT_TIMEOUT)

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        *,
        on_request: OnRequest | None = None,
        request_timeout: float = REQUEST_TIMEOUT,
    ) -> Cluster:
        """Load credentials: from *kubeconfig*, else those of the pod we run in, else KUBECONFIG or its default place.

        Sends no request. *request_timeout* is in seconds. Raises kubernetes.aio.config.ConfigException.
        """
        configuration = Configuration()
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            await asyncio.to_thread(load_incluster_config, client_configuration=configuration)
            where = None
        else:
            # Read now and not through the official default, which is fixed when its module is imported.
            where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
            await load_kube_config(
                config_file=os.path.expanduser(where),  # noqa: ASYNC240 - touches no file
                client_configuration=configuration,
                persist_config=False,
            )
        if not getproxies().keys() - {"no"}:
            # Else aiohttp asks the environment for a proxy before each request, in a thread.
            configuration.client_session_kwargs = {"trust_env": False}
        return cls(ApiClient(configuration), kubeconfig=where, on_request=on_request, request_timeout=request_timeout)

    async def close(self) -> None:
        """End the session and its connections; whoever still asks gets Unavailable."""
        self._closed = True
        await self._api.close()

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        """Return the object, or None if it is not there."""
        try:
            return await self._call("GET", resource.path(namespace, name))
        except errors.NotFound:
            return None

    async def list_all(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str | None = None, limit: int = 500
    ) -> tuple[list[Object], str]:
        """Return all objects, read in pages of *limit* from one consistent state, and that state's resource version.

        Never answered from a server's cache that may lag behind our own writes. Items carry no apiVersion and kind.
        """
        try:
            return await self._pages(resource, namespace, label_selector, limit)
        except errors.Gone:
            # The list took longer than the server keeps old states: one page needs no state to be kept.
            return await self._pages(resource, namespace, label_selector, None)

    async def _pages(
        self, resource: Resource, namespace: str | None, label_selector: str | None, limit: int | None
    ) -> tuple[list[Object], str]:
        query: dict[str, str] = {}
        if label_selector:
            query["labelSelector"] = label_selector
        if limit is not None:
            query["limit"] = str(limit)
        objects: list[Object] = []
        while True:
            page = await self._call("GET", resource.path(namespace), query=query)
            objects += page.get("items") or ()
            metadata = page["metadata"]
            if not (token := metadata.get("continue")):
                return objects, metadata["resourceVersion"]
            query["continue"] = token

    async def list_some(
        self, resource: Resource, namespace: str | None = None, *, field_selector: str, limit: int
    ) -> list[Object]:
        """Return at most *limit* objects that the selector fits, in one request: enough where the rest is no loss."""
        query = {"fieldSelector": field_selector, "limit": str(limit)}
        page = await self._call("GET", resource.path(namespace), query=query)
        return list(page.get("items") or ())

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        silence: float = WATCH_SILENCE,
    ) -> AsyncGenerator[Object, None]:
        """Yield ``{"type": ..., "object": ...}`` for each change after *resource_version*, bookmarks included.

        Ends when the server closes the stream at its time; raises Gone when *resource_version* is too old, and
        Unavailable when the connection breaks or nothing came for *silence* seconds.
        """
        query = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
        }
        if label_selector:
            query["labelSelector"] = label_selector
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=silence)
        path = resource.path(namespace)
        answer = await self._send("GET", path, query=query, limits=limits)
        try:
            if answer.status != 200:
                raise errors.from_answer(answer.status, await answer.read(), answer.headers)
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise errors.from_answer(int(status.get("code", 500)), status, {})
                yield event
        except TimeoutError as error:
            raise errors.Unavailable(f"the watch of {path} was silent for {silence:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise errors.Unavailable(f"the watch of {path} broke: {_sentence(error)}") from error
        finally:
            answer.close()

    async def create(self, resource: Resource, body: Object, namespace: str | None = None) -> Object:
        """Create the object and return it as stored. Raises AlreadyExists if the name is taken."""
        return await self._call("POST", resource.path(namespace), body=body)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Ask for deletion; one that is gone already, or has another UID than *uid*, is a success.

        With *resource_version* it is conditional: Conflict if the object has another.
        """
        body: Object = {"propagationPolicy": "Background"}
        conditions = {"uid": uid, "resourceVersion": resource_version}
        if preconditions := {name: value for name, value in conditions.items() if value is not None}:
            body["preconditions"] = preconditions
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._call("DELETE", resource.path(namespace, name), body=body)
        except errors.NotFound:
            return
        except errors.Conflict:
            if uid is None or resource_version is not None:
                raise

    async def json_patch(
        self, resource: Resource, name: str, namespace: str | None, operations: list[Object]
    ) -> Object | None:
        """Apply the RFC 6902 *operations*, all or none; return the object, or None if it is not there.

        Raises Conflict if a ``test`` fails or a removed path is not there.
        """
        try:
            return await self._call(
                "PATCH", resource.path(namespace, name), body=operations, content_type="application/json-patch+json"
            )
        except errors.NotFound:
            return None

    async def apply(
        self,
        resource: Resource,
        body: Object,
        *,
        manager: str,
        subresource: str | None = None,
        force: bool = True,
    ) -> Object:
        """Server-side apply of *body*, which names itself in its metadata; return the object as stored.

        With metadata.resourceVersion it is conditional: Conflict if the object has another, or is not there.
        A subresource of an absent object raises NotFound.
        """
        metadata = body["metadata"]
        return await self._call(
            "PATCH",
            resource.path(metadata.get("namespace"), metadata["name"], subresource),
            query={"fieldManager": manager, "force": "true" if force else "false"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    async def review_token(self, token: str, audience: str) -> Review | None:
        """Ask the API server whose *token* this is; None if it is nobody's, or not meant for *audience*."""
        answer = await self.create(
            TOKENREVIEWS,
            {
                "apiVersion": TOKENREVIEWS.api_version,
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [audience]},
            },
        )
        status = answer.get("status", {})
        # A server that knows no audiences answers without them and has checked nothing.
        if not status.get("authenticated") or audience not in status.get("audiences", ()):
            return None
        user = status.get("user", {})
        username = user.get("username", "")
        extra = user.get("extra") or {}
        account = username.split(":") if username.startswith("system:serviceaccount:") else []
        return Review(
            username=username,
            namespace=account[2] if len(account) == 4 else "",
            service_account=account[3] if len(account) == 4 else "",
            pod_name=next(iter(extra.get(_POD_NAME, ())), ""),
            pod_uid=next(iter(extra.get(_POD_UID, ())), ""),
        )

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
    ) -> Object:
        """Send one request and return its JSON; try again what the server has certainly not done, or does no harm."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._once(method, path, query, body, content_type)
            except errors.Unavailable as error:
                refused_unread = error.status in (401, 429)  # turned away at the door, so any verb may knock again
                if attempt == ATTEMPTS or not (refused_unread or method == "GET"):
                    raise
                if error.status == 401:
                    await self._reload_credentials()
                pause = max(error.retry_after or 0.0, 0.1 * 2**attempt * random.uniform(0.5, 1.5))
                await asyncio.sleep(min(pause, MAX_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, method: str, path: str, query: dict[str, str] | None, body: Any, content_type: str) -> Object:
        answer = await self._send(method, path, query=query, body=body, content_type=content_type)
        try:
            content = await answer.read()
            if answer.status >= 300:
                raise errors.from_answer(answer.status, content, answer.headers)
            answered: Object = json.loads(content)
            return answered
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            raise errors.Unavailable(f"no whole answer to {method} {path}: {_sentence(error)}") from error
        finally:
            answer.release()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        limits: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        if self._closed:
            raise errors.Unavailable("the connection to the API server is closed")
        try:
            _, url, headers, _, _ = await self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": _JSON, "Content-Type": content_type},
                auth_settings=["BearerToken"],
            )
            answer = await self._api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=limits or self._limits
            )
        except (aiohttp.ClientError, OSError) as error:
            self._on_request(method, "<error>")
            raise errors.Unavailable(f"the API server did not answer {method} {path}: {_sentence(error)}") from error
        response: aiohttp.ClientResponse = answer.response
        self._on_request(method, str(response.status))
        return response

    async def _reload_credentials(self) -> None:
        """Read the kubeconfig again: a token file or credential plugin may have something newer.

        The official client renews in-cluster tokens itself, once a minute, but never those of a kubeconfig.
        """
        if self._kubeconfig is None:
            return
        fresh = Configuration()
        await load_kube_config(
            config_file=os.path.expanduser(self._kubeconfig),  # noqa: ASYNC240
            client_configuration=fresh,
            persist_config=False,
        )
        self._api.configuration.api_key.update(fresh.api_key)


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__
