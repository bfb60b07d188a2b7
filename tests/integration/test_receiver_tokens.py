"""The webhook endpoint with the real API server's tokens: whose are believed, and for how long."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections import Counter

import aiohttp
import pytest

from lorafinetune.contract.event import AUDIENCE, EVENTS_PATH, Event
from lorafinetune.kube.client import PODS, Cluster, Resource
from lorafinetune.receiver import authenticate
from lorafinetune.receiver.authenticate import Identity
from lorafinetune.receiver.certificate import make_authority, make_server_certificate
from lorafinetune.receiver.judge import Current, Delivery, Judge
from lorafinetune.receiver.server import Receiver

SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", namespaced=True)


async def make_pod(api: Cluster, namespace: str, name: str, *finalizers: str) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "finalizers": list(finalizers)},
        "spec": {"containers": [{"name": "trainer", "image": "x"}], "schedulerName": "nobody"},
    }
    uid: str = (await api.create(PODS, body, namespace))["metadata"]["uid"]
    return uid


async def token_of(api: Cluster, namespace: str, name: str, uid: str, audience: str = AUDIENCE) -> str:
    """Return a token as the kubelet would project it into the pod."""
    spec = {
        "audiences": [audience],
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid},
    }
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await api._call("POST", SERVICE_ACCOUNTS.path(namespace, "default", "token"), body=body)
    token: str = answer["status"]["token"]
    return token


async def test_only_the_living_pod_of_the_current_attempt_is_heard(
    api: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticate, "REMEMBER_SECONDS", 0.5)
    monkeypatch.setattr(authenticate, "REMEMBER_REFUSED_SECONDS", 0.5)

    async def review(token: str) -> Identity | None:
        found = await api.review_token(token, AUDIENCE)
        if found is None:
            return None
        return Identity(found.namespace, found.service_account, found.pod_name, found.pod_uid)

    first = await make_pod(api, namespace, "timber-1", "lorafinetune.io/attempt")
    other = await make_pod(api, namespace, "other")
    runs = {"run": Current(namespace, 1, first)}
    delivered: list[Event] = []
    counted: Counter[str] = Counter()

    def deliver(told: Event) -> Delivery:
        if any((told.attempt, told.sequence) <= (before.attempt, before.sequence) for before in delivered):
            return Delivery.STALE
        delivered.append(told)
        return Delivery.ACCEPTED

    receiver = Receiver(
        Judge(review=review, current=runs.get, deliver=deliver, ready=lambda: True),
        count=lambda label: counted.update([label]),
    )
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority(now)
    port = await receiver.start(make_server_certificate(authority, ["127.0.0.1"], now), host="127.0.0.1")
    tls = ssl.create_default_context(cadata=authority.certificate.decode())
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls))

    async def send(token: str, attempt: int, sequence: int) -> int:
        body = {"type": "progress", "runUid": "run", "attempt": attempt, "sequence": sequence, "step": sequence}
        url = f"https://127.0.0.1:{port}{EVENTS_PATH}"
        async with session.post(url, json=body, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status

    try:
        token = await token_of(api, namespace, "timber-1", first)
        assert await send(token, 1, 1) == 200
        assert await send(token, 1, 1) == 202, "a replay"
        assert await send(await token_of(api, namespace, "timber-1", first, "vault"), 1, 2) == 401
        assert await send(await token_of(api, namespace, "other", other), 1, 2) == 403
        head, claims, signature = token.split(".")
        assert await send(f"{head}.{claims}.{signature[::-1]}", 1, 2) == 401, "a forged signature"

        # The pod is deleted but held by a finalizer, so the API server still vouches for its token: the fence does not.
        await api.delete(PODS, "timber-1", namespace, uid=first, grace_seconds=0)
        second = await make_pod(api, namespace, "timber-2")
        assert await send(token, 1, 3) == 200, "until the next attempt is current it may tell how it ended"
        runs["run"] = Current(namespace, 2, second)
        assert await send(token, 1, 4) == 409
        assert await send(token, 2, 4) == 403
        assert await send(await token_of(api, namespace, "timber-2", second), 2, 1) == 200

        await api.json_patch(PODS, "timber-1", namespace, [{"op": "remove", "path": "/metadata/finalizers"}])
        async with asyncio.timeout(30):  # the API server itself remembers its verdicts for 10 s
            while await send(token, 1, 5) != 401:
                await asyncio.sleep(0.2)
        del runs["run"]
        assert await send(await token_of(api, namespace, "timber-2", second), 2, 2) == 404
        assert [(told.attempt, told.sequence) for told in delivered] == [(1, 1), (1, 3), (2, 1)]
        assert counted["accepted"] == 3
        assert counted["stale"] == 1
        assert counted["gone"] == 1
        assert counted["unauthenticated"] == 3
        assert counted["forbidden"] == 2
        assert counted["fenced"] >= 1
    finally:
        await session.close()
        await receiver.close()
