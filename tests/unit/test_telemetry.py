"""Metrics, log lines and probes."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import aiohttp
import pytest
from prometheus_client import generate_latest

from lorafinetune.probes import Probes
from lorafinetune.telemetry import JsonFormatter, Metrics, redact, set_up_logging


def test_every_feeder_feeds_its_metric() -> None:
    metrics = Metrics()
    with metrics.reconcile():
        pass
    with pytest.raises(ValueError, match="broken"), metrics.reconcile():
        raise ValueError("broken")
    metrics.queued(3)
    metrics.taken(2, 0.004)
    metrics.requested("GET", "200")
    metrics.leading(True)
    metrics.attempt_ended("Preempted")
    metrics.preempted("NodeLost", "spot-4090")
    metrics.replaced(0.3)
    metrics.webhook("accepted")
    metrics.event("created")
    metrics.deleted(12)
    metrics.abandoned(1)
    metrics.watched("pods")

    def value(name: str, /, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    loop = {"controller": "lorafinetune"}
    assert value("controller_runtime_reconcile_total", result="success", **loop) == 1
    assert value("controller_runtime_reconcile_total", result="error", **loop) == 1
    assert value("controller_runtime_reconcile_errors_total", **loop) == 1
    assert value("controller_runtime_reconcile_time_seconds_count", **loop) == 2
    assert value("workqueue_depth", name="lorafinetune") == 2
    assert value("workqueue_adds_total", name="lorafinetune") == 1
    assert value("workqueue_queue_duration_seconds_sum", name="lorafinetune") == 0.004
    assert value("rest_client_requests_total", code="200", method="GET") == 1
    assert value("leader_election_master_status", name="lorafinetune") == 1
    assert value("lorafinetune_attempts_total", outcome="Preempted") == 1
    assert value("lorafinetune_preemptions_total", cause="NodeLost", pool="spot-4090") == 1
    assert value("lorafinetune_replacement_duration_seconds_sum") == 0.3
    assert value("lorafinetune_webhook_requests_total", result="accepted") == 1
    assert value("lorafinetune_kubernetes_events_total", outcome="created") == 1
    assert value("lorafinetune_gc_objects_deleted_total") == 12
    assert value("lorafinetune_abandoned_prefixes") == 1
    assert (value("lorafinetune_watch_last_event_timestamp_seconds", resource="pods") or 0) > 1.7e9
    assert b"lorafinetune_build_info{" in generate_latest(metrics.registry)
    assert b"process_resident_memory_bytes" in generate_latest(metrics.registry)


def test_two_sets_of_metrics_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.deleted(1)
    assert second.registry.get_sample_value("lorafinetune_gc_objects_deleted_total") == 0


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_log_is_one_json_object_a_line(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    set_up_logging("info", stream)
    log = logging.getLogger("lorafinetune.loop")
    log.info("two\nlines", extra={"run": "timber", "attempt": 2, "reason": "Preempted", "secret": "never"})
    log.debug("nothing to do")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("a pass failed", extra={"uid": "1234"})
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "two\nlines"
    assert (first["level"], first["logger"], first["run"], first["attempt"], first["reason"]) == (
        "info",
        "lorafinetune.loop",
        "timber",
        2,
        "Preempted",
    )
    assert "secret" not in first
    assert first["time"].endswith("Z")
    assert second["uid"] == "1234"
    assert "ValueError: broken" in second["exception"]


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJ4In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"Authorization: Bearer {JWT}", JWT),
        (f"the token {JWT} was refused", "c2lnbmF0dXJl"),
        ("GET https://s3/x?X-Amz-Signature=abcdef0123&X-Amz-Date=1", "abcdef0123"),
        ("https://user:hunter2@proxy:3128/", "hunter2"),
        ("AWS_SECRET_ACCESS_KEY='wJalrXUtnFEMI'", "wJalrXUtnFEMI"),
        ("login with hf_abcdefghijklmnopqrstuvwx", "hf_abcdefghijklmnopqrstuvwx"),
        ("-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----", "MIGHAgEA"),
    ],
)
def test_secrets_are_not_written(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "[redacted]" in redact(text)
    record = logging.makeLogRecord({"msg": text, "levelno": logging.INFO, "levelname": "INFO", "reason": text})
    assert secret not in JsonFormatter().format(record)
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    assert secret not in JsonFormatter().format(record)


@pytest.mark.parametrize(
    "text",
    ["pod timber-abcde-1 of s3://loras/team/timber-1234/ at step 40/500", "https://127.0.0.1:8443/v1/events", "a@b.c"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


async def test_probes_say_what_is_wrong() -> None:
    wrong: dict[str, str | None] = {"live": None, "ready": "pods are not listed yet"}

    def broken() -> str | None:
        raise RuntimeError("oops")

    metrics = Metrics()
    probes = Probes(
        metrics.registry,
        live={"watches": lambda: wrong["live"]},
        ready={"stores": lambda: wrong["ready"], "leader": lambda: None},
    )
    port = await probes.start(host="127.0.0.1")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

            async def ask(path: str) -> tuple[int, str]:
                async with session.get(path) as answer:
                    return answer.status, await answer.text()

            assert await ask("/livez") == (200, "ok\n")
            assert await ask("/readyz") == (503, "stores: pods are not listed yet\n")
            wrong["ready"] = None
            assert await ask("/readyz") == (200, "ok\n")
            probes._live = {"broken": broken}
            assert await ask("/livez") == (503, "broken: the check itself failed: RuntimeError: oops\n")
            status, text = await ask("/metrics")
            assert status == 200
            assert "lorafinetune_build_info" in text
            assert (await ask("/"))[0] == 404
    finally:
        await probes.close()
