"""What strangers, zombies and honest trainers get from the webhook endpoint, over true HTTPS."""

from __future__ import annotations

import asyncio
import base64
import datetime
import gzip
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from lorafinetune.contract.event import AUDIENCE, EVENTS_PATH, MAX_EVENT_BYTES, Event
from lorafinetune.ratelimit import RateLimit
from lorafinetune.receiver import authenticate, judge, server
from lorafinetune.receiver.authenticate import Authenticator, Identity
from lorafinetune.receiver.certificate import Authority, make_authority, make_server_certificate
from lorafinetune.receiver.judge import Current, Delivery, Judge
from lorafinetune.receiver.server import Receiver

TRAINER = Identity("team", "default", "timber-1", "uid-of-pod-2")
ZOMBIE = Identity("team", "default", "timber-0", "uid-of-pod-1")
STRANGER = Identity("elsewhere", "default", "x", "uid-of-stranger")
UNBOUND = Identity("team", "default", "", "")


def jwt(subject: str, *, audience: Any = AUDIENCE, seconds: float = 86400) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"sub": subject, "aud": [audience], "exp": int(time.time() + seconds)}
    return f"{part({'alg': 'RS256'})}.{part(claims)}.c2lnbmF0dXJl"


TOKENS = {jwt(who.pod_name or "unbound"): who for who in (TRAINER, ZOMBIE, STRANGER, UNBOUND)}
TOKEN_OF = {who: token for token, who in TOKENS.items()}


def event(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "type": "progress", "runUid": "run", "attempt": 2, "sequence": 1, "step": 7} | changes


class Operator:
    """What is behind the receiver: the run it knows, and what was delivered."""

    def __init__(self) -> None:
        self.runs = {"run": Current("team", 2, TRAINER.pod_uid)}
        self.delivered: list[Event] = []
        self.reviewed: list[str] = []
        self.answer = Delivery.ACCEPTED
        self.is_ready = True
        self.counted: Counter[str] = Counter()
        self.cluster_is_there = True

    async def review(self, token: str) -> Identity | None:
        if not self.cluster_is_there:
            raise ConnectionError("no API server")
        self.reviewed.append(token)
        return TOKENS.get(token)

    def deliver(self, told: Event) -> Delivery:
        self.delivered.append(told)
        return self.answer


class Endpoint:
    def __init__(self, operator: Operator, receiver: Receiver, port: int, authority: Authority) -> None:
        self.operator = operator
        self.receiver = receiver
        self.port = port
        self.authority = authority
        self.tls = ssl.create_default_context(cadata=authority.certificate.decode())
        self.tls.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 and later do
        self.session = aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=aiohttp.TCPConnector(ssl=self.tls))

    async def send(
        self, body: Any, *, who: Identity | str | None = TRAINER, path: str = EVENTS_PATH, method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, Any], Any]:  # fmt: skip
        token = TOKEN_OF[who] if isinstance(who, Identity) else who
        sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        async with self.session.request(method, path, data=content, headers=sent | (headers or {})) as answer:
            return answer.status, json.loads(await answer.read() or "{}"), answer.headers


async def endpoint_of(operator: Operator, **options: Any) -> Endpoint:
    decides = Judge(
        review=operator.review,
        current=operator.runs.get,
        deliver=operator.deliver,
        ready=lambda: operator.is_ready,
        **options,
    )
    receiver = Receiver(decides, count=lambda label: operator.counted.update([label]))
    authority = make_authority(datetime.datetime.now(datetime.UTC))
    certificate = make_server_certificate(authority, ["127.0.0.1"], datetime.datetime.now(datetime.UTC))
    port = await receiver.start(certificate, host="127.0.0.1")
    return Endpoint(operator, receiver, port, authority)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    one = await endpoint_of(Operator())
    yield one
    await one.session.close()
    await one.receiver.close()


async def test_event_of_the_current_attempt_is_delivered(endpoint: Endpoint) -> None:
    status, body, _ = await endpoint.send(event(loss=0.5, fieldOfTheFuture=1))
    assert status == 200
    assert (body["kind"], body["status"]) == ("Status", "Success")
    assert [(told.run_uid, told.attempt, told.step, told.loss) for told in endpoint.operator.delivered] == [
        ("run", 2, 7, 0.5)
    ]
    assert endpoint.operator.counted == {"accepted": 1}


REFUSED: dict[str, tuple[Any, dict[str, Any], int, str, str]] = {
    "no token": (event(), {"who": None}, 401, "unauthenticated", "Authorization: Bearer"),
    "another scheme": (
        event(),
        {"who": None, "headers": {"Authorization": "Basic eDp5"}},
        401,
        "unauthenticated",
        "Bearer",
    ),
    "no JWT": (event(), {"who": "not.a.jwt"}, 401, "unauthenticated", "no JWT"),
    "JWT of a list": (event(), {"who": "W10.W10.W10"}, 401, "unauthenticated", "no JWT"),
    "endless token": (event(), {"who": "a" * 9000}, 401, "unauthenticated", "no JWT"),
    "another audience": (event(), {"who": jwt("x", audience="vault")}, 401, "unauthenticated", AUDIENCE),
    "expired": (event(), {"who": jwt("x", seconds=-3600)}, 401, "unauthenticated", "expired"),
    "no expiry": (event(), {"who": jwt("x", seconds=float(-(10**12)))}, 401, "unauthenticated", "expired"),
    "forged": (event(), {"who": jwt("forged")}, 401, "unauthenticated", "does not accept"),
    "bound to no pod": (event(), {"who": UNBOUND}, 401, "unauthenticated", "bound to no pod"),
    "another namespace": (event(), {"who": STRANGER}, 403, "forbidden", "namespace"),
    "another pod": (event(), {"who": ZOMBIE}, 403, "forbidden", "current attempt"),
    "attempt of the future": (event(attempt=3), {}, 403, "forbidden", "current attempt"),
    "zombie": (event(attempt=1), {"who": ZOMBIE}, 409, "fenced", "replaced by attempt 2: stop"),
    "run gone": (event(runUid="no-more"), {}, 404, "gone", "no such run"),
    "no JSON": (b"{", {}, 400, "malformed", "the body"),
    "no event": (b"[]", {}, 400, "malformed", "the body"),
    "NaN": (
        b'{"version":1,"type":"progress","runUid":"run","attempt":2,"sequence":1,"step":1,"loss":NaN}',
        {},
        400,
        "malformed",
        "loss",
    ),
    "negative step": (event(step=-1), {}, 400, "malformed", "step"),
    "unknown version": (event(version=2), {}, 400, "malformed", "version"),
    "unknown type": (event(type="boast"), {}, 400, "malformed", "type"),
    "checkpoint without one": (event(type="checkpoint"), {}, 400, "malformed", "must carry checkpoint"),
    "deep": (b'{"a":' * 10000 + b"1" + b"}" * 10000, {}, 400, "malformed", "the body"),
    "too large": (event(message="x" * MAX_EVENT_BYTES), {}, 413, "too_large", "65536 bytes"),
    "not said to be JSON": (
        event(),
        {"headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_media_type",
        "application/json",
    ),
    "compressed": (
        gzip.compress(json.dumps(event()).encode()),
        {"headers": {"Content-Encoding": "gzip"}},
        415,
        "unsupported_media_type",
        "not compressed",
    ),
    "another path": (event(), {"path": "/v1/others"}, 404, "unknown_path", EVENTS_PATH),
    "another verb": (event(), {"method": "PUT"}, 405, "wrong_method", "POST"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_changes_nothing_and_is_counted(endpoint: Endpoint, name: str) -> None:
    body, options, status, label, sentence = REFUSED[name]
    answered, told, headers = await endpoint.send(body, **options)
    assert answered == status
    assert (told["kind"], told["apiVersion"], told["status"], told["code"]) == ("Status", "v1", "Failure", status)
    assert sentence in told["message"]
    assert len(told["message"]) < 600
    assert endpoint.operator.delivered == []
    assert endpoint.operator.counted == {label: 1}
    assert ("WWW-Authenticate" in headers) == (status == 401)
    # And nobody else suffers from it.
    assert (await endpoint.send(event()))[0] == 200


async def test_body_without_length_is_cut_off_at_the_limit(endpoint: Endpoint) -> None:
    head = HEAD + f"Authorization: Bearer {TOKEN_OF[TRAINER]}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await raw(endpoint, head.encode() + chunk + b"1\r\n \r\n")
    assert b" 413 " in answer.splitlines()[0]
    assert endpoint.operator.counted == {"too_large": 1}
    assert endpoint.operator.delivered == []


@pytest.mark.parametrize(("answer", "status", "label"), [
    (Delivery.STALE, 202, "stale"),
    (Delivery.BUSY, 503, "not_ready"),
])  # fmt: skip
async def test_what_the_loop_makes_of_it(endpoint: Endpoint, answer: Delivery, status: int, label: str) -> None:
    endpoint.operator.answer = answer
    answered, _, headers = await endpoint.send(event())
    assert answered == status
    assert endpoint.operator.counted == {label: 1}
    assert headers.get("Retry-After") == ("1" if status == 503 else None)


async def test_not_ready_asks_to_come_again(endpoint: Endpoint) -> None:
    endpoint.operator.is_ready = False
    status, _, headers = await endpoint.send(event())
    assert (status, headers["Retry-After"]) == (503, "1")
    assert endpoint.operator.reviewed == []
    assert endpoint.operator.counted == {"not_ready": 1}


async def test_api_server_that_cannot_be_asked_is_no_verdict_on_the_token(endpoint: Endpoint) -> None:
    endpoint.operator.cluster_is_there = False
    status, body, headers = await endpoint.send(event())
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "ConnectionError" in body["message"]
    endpoint.operator.cluster_is_there = True
    assert (await endpoint.send(event()))[0] == 200


async def test_fault_of_ours_is_told_and_counted(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.receiver._judge._current = lambda _uid: 1 / 0  # type: ignore[assignment,return-value]
    status, body, _ = await endpoint.send(event())
    assert status == 500
    assert "ZeroDivisionError" not in json.dumps(body)
    assert "ZeroDivisionError" in caplog.text
    assert endpoint.operator.counted == {"failed": 1}


async def test_pod_that_sends_too_much_is_slowed_alone() -> None:
    operator = Operator()
    operator.runs["other"] = Current("elsewhere", 1, STRANGER.pod_uid)
    endpoint = await endpoint_of(operator, pods=RateLimit(0.5, 3))
    try:
        answers = [await endpoint.send(event()) for _ in range(5)]
        assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
        assert 1 <= int(answers[-1][2]["Retry-After"]) <= 2
        assert len(operator.delivered) == 3
        assert operator.counted == {"accepted": 3, "rate_limited": 2}
        assert (await endpoint.send(event(runUid="other", attempt=1), who=STRANGER))[0] == 200
    finally:
        await endpoint.session.close()
        await endpoint.receiver.close()


async def test_namespace_that_sends_too_much_is_slowed_alone() -> None:
    operator = Operator()
    operator.runs["other"] = Current("elsewhere", 1, STRANGER.pod_uid)
    endpoint = await endpoint_of(operator, namespaces=RateLimit(0.01, 2))
    try:
        assert [(await endpoint.send(event(), who=who))[0] for who in (TRAINER, ZOMBIE, TRAINER)] == [200, 403, 429]
        assert (await endpoint.send(event(runUid="other", attempt=1), who=STRANGER))[0] == 200
    finally:
        await endpoint.session.close()
        await endpoint.receiver.close()


async def test_forged_tokens_cannot_flood_the_api_server() -> None:
    operator = Operator()
    limited = Authenticator(operator.review, addresses=RateLimit(0.01, 3))
    endpoint = await endpoint_of(operator, authenticator=limited)
    try:
        assert (await endpoint.send(event()))[0] == 200
        statuses = [(await endpoint.send(event(), who=jwt(f"forged-{number}")))[0] for number in range(6)]
        assert statuses == [401, 401, 429, 429, 429, 429]
        assert len(operator.reviewed) == 3
        assert (await endpoint.send(event()))[0] == 200, "a token that is known needs no review"
    finally:
        await endpoint.session.close()
        await endpoint.receiver.close()


async def test_verdict_on_a_token_is_remembered_for_a_while() -> None:
    operator, now = Operator(), time.time()
    authenticator = Authenticator(operator.review, clock=lambda: now)
    header = f"Bearer {TOKEN_OF[TRAINER]}"
    assert await authenticator.identify(header, "a") == TRAINER
    assert await authenticator.identify(header, "a") == TRAINER
    assert len(operator.reviewed) == 1
    now += authenticate.REMEMBER_SECONDS
    assert await authenticator.identify(header, "a") == TRAINER
    assert len(operator.reviewed) == 2
    forged = f"Bearer {jwt('forged')}"
    for _ in range(2):
        with pytest.raises(authenticate.Unauthenticated):
            await authenticator.identify(forged, "a")
    assert len(operator.reviewed) == 3
    now += authenticate.REMEMBER_REFUSED_SECONDS
    with pytest.raises(authenticate.Unauthenticated):
        await authenticator.identify(forged, "a")
    assert len(operator.reviewed) == 4


async def test_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticate, "MAX_REMEMBERED", 10)
    operator = Operator()
    authenticator = Authenticator(operator.review, addresses=RateLimit(1e9, 10**6), total=RateLimit(1e9, 10**6))
    for number in range(50):
        with pytest.raises(authenticate.Unauthenticated):
            await authenticator.identify(f"Bearer {jwt(str(number))}", "a")
    assert len(authenticator._remembered) == 10


async def test_review_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticate, "REVIEW_SECONDS", 0.1)

    async def hangs(_token: str) -> Identity | None:
        await asyncio.Event().wait()
        return None

    with pytest.raises(authenticate.NoAnswer):
        await Authenticator(hangs).identify(f"Bearer {TOKEN_OF[TRAINER]}", "a")


async def raw(endpoint: Endpoint, sent: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes as they are and return what comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port, ssl=endpoint.tls)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), seconds)
    finally:
        writer.close()


HEAD = f"POST {EVENTS_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def test_connections_that_dawdle_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(judge, "BODY_SECONDS", 0.3)
    endpoint = await endpoint_of(Operator())
    try:
        assert await raw(endpoint, b"") == b"", "says nothing"
        assert await raw(endpoint, HEAD.encode()) == b"", "never ends its headers"
        answer = await raw(endpoint, (HEAD + "Content-Length: 100\r\n\r\n{").encode())
        assert b" 400 " in answer.splitlines()[0], "never ends its body"
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        assert await asyncio.wait_for(reader.read(), 5) == b"", "never begins the handshake"
        writer.close()
        assert endpoint.operator.delivered == []
    finally:
        await endpoint.session.close()
        await endpoint.receiver.close()


async def test_headers_are_bounded(endpoint: Endpoint) -> None:
    answer = await raw(endpoint, (HEAD + f"X: {'x' * 20_000}\r\nConnection: close\r\n\r\n").encode())
    assert b" 400 " in answer.splitlines()[0]
    many = "".join(f"X-{number}: x\r\n" for number in range(100))
    answer = await raw(endpoint, (HEAD + many + "Connection: close\r\n\r\n").encode())
    assert b" 400 " in answer.splitlines()[0]


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    endpoint = await endpoint_of(Operator())
    held = [await asyncio.open_connection("127.0.0.1", endpoint.port, ssl=endpoint.tls) for _ in range(2)]
    try:
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await endpoint.send(event())
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        deadline = time.monotonic() + 10
        while True:
            try:
                assert (await endpoint.send(event()))[0] == 200
                break
            except (aiohttp.ClientError, ConnectionError):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
    finally:
        await endpoint.session.close()
        await endpoint.receiver.close()


async def test_certificate_is_renewed_without_restart(endpoint: Endpoint) -> None:
    def shown() -> bytes:
        return ssl.get_server_certificate(("127.0.0.1", endpoint.port)).encode()

    before = await asyncio.to_thread(shown)
    now = datetime.datetime.now(datetime.UTC)
    renewed = make_server_certificate(endpoint.authority, ["127.0.0.1"], now)
    await endpoint.receiver.use(renewed)
    assert (await asyncio.to_thread(shown)).strip() == renewed.certificate.strip()
    assert before.strip() != renewed.certificate.strip()
    assert (await endpoint.send(event()))[0] == 200


async def test_only_true_certificates_are_believed(endpoint: Endpoint) -> None:
    other = make_authority(datetime.datetime.now(datetime.UTC))
    tls = ssl.create_default_context(cadata=other.certificate.decode())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.post(f"https://127.0.0.1:{endpoint.port}{EVENTS_PATH}", json=event())
