"""What the operator tells about itself: metrics for Prometheus and one JSON line per log record.

Labels come from closed sets (and the administrator's pool names), never from users' names: detail per run belongs in
status and Kubernetes events. Names that controller-runtime has are taken from it, so that existing dashboards work.
"""

from __future__ import annotations

import datetime
import json
import logging
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from lorafinetune import __version__

CONTROLLER: Final = "lorafinetune"
_QUICK: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """Everything that is counted. Feed it with the methods below, so that label names stay in one place."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        # As controller-runtime and client-go name them.
        self._reconciles = counter(
            "controller_runtime_reconcile_total", "Passes of the loop, by result", "controller", "result"
        )
        self._reconcile_errors = counter(
            "controller_runtime_reconcile_errors_total", "Passes that ended with an error", "controller"
        )
        self._reconcile_seconds = histogram(
            "controller_runtime_reconcile_time_seconds", "Seconds per pass", _QUICK, "controller"
        )
        self._queue_depth = gauge("workqueue_depth", "Runs that wait to be looked at", "name")
        self._queue_adds = counter("workqueue_adds_total", "Runs put into the queue", "name")
        self._queue_seconds = histogram(
            "workqueue_queue_duration_seconds", "Seconds that a run waited in the queue", _QUICK, "name"
        )
        self._requests = counter("rest_client_requests_total", "Requests to the API server", "code", "method")
        self._leader = gauge("leader_election_master_status", "1 while this replica leads", "name")

        # Ours.
        self._attempts = counter("lorafinetune_attempts_total", "Attempts that ended, by outcome", "outcome")
        self._preemptions = counter(
            "lorafinetune_preemptions_total", "Attempts that the platform took away", "cause", "pool"
        )
        self._corrected = counter(
            "lorafinetune_attempts_corrected_total", "Attempts whose outcome late evidence corrected", "was", "outcome"
        )
        self._replacement_seconds = histogram(
            "lorafinetune_replacement_duration_seconds", "Seconds from a preemption to the next pod's creation", _LONG
        )
        self._webhook_requests = counter(
            "lorafinetune_webhook_requests_total", "Requests to the webhook endpoint, by result", "result"
        )
        self._events = counter("lorafinetune_kubernetes_events_total", "Kubernetes events, by outcome", "outcome")
        self._deleted = counter("lorafinetune_gc_objects_deleted_total", "Objects deleted from storage")
        self._abandoned = gauge(
            "lorafinetune_abandoned_prefixes", "Prefixes that were let go although they could not be emptied"
        )
        self._watched = gauge(
            "lorafinetune_watch_last_event_timestamp_seconds", "Unix time of a watch's last sign of life", "resource"
        )
        gauge("lorafinetune_build_info", "1, with the versions", "version", "python_version").labels(
            __version__, platform.python_version()
        ).set(1)
        self.leading(False)

    @contextmanager
    def reconcile(self) -> Iterator[None]:
        """Time one pass; one that raises counts as an error."""
        begun = time.perf_counter()
        try:
            yield
        except Exception:
            self._reconcile_errors.labels(CONTROLLER).inc()
            self._reconciles.labels(CONTROLLER, "error").inc()
            raise
        else:
            self._reconciles.labels(CONTROLLER, "success").inc()
        finally:
            self._reconcile_seconds.labels(CONTROLLER).observe(time.perf_counter() - begun)

    def queued(self, depth: int) -> None:
        """Count one run put into the queue, which now holds *depth*."""
        self._queue_adds.labels(CONTROLLER).inc()
        self._queue_depth.labels(CONTROLLER).set(depth)

    def taken(self, depth: int, waited: float) -> None:
        """Count one run taken from the queue after *waited* seconds."""
        self._queue_depth.labels(CONTROLLER).set(depth)
        self._queue_seconds.labels(CONTROLLER).observe(waited)

    def requested(self, method: str, code: str) -> None:
        """Count one request to the API server: fits ``Cluster.connect(on_request=...)``."""
        self._requests.labels(code, method).inc()

    def leading(self, leads: bool) -> None:
        """Say whether this replica leads."""
        self._leader.labels(CONTROLLER).set(1 if leads else 0)

    def attempt_ended(self, outcome: str) -> None:
        """Count one attempt's end."""
        self._attempts.labels(outcome).inc()

    def corrected(self, was: str, outcome: str) -> None:
        """Count one attempt that was counted under *was*, and belongs under *outcome*."""
        self._corrected.labels(was, outcome).inc()

    def preempted(self, cause: str, pool: str) -> None:
        """Count one attempt taken away by the platform."""
        self._preemptions.labels(cause, pool).inc()

    def replaced(self, seconds: float) -> None:
        """Record how long it took from a preemption to the next pod."""
        self._replacement_seconds.observe(seconds)

    def webhook(self, result: str) -> None:
        """Count one answer of the webhook endpoint: fits ``Receiver(count=...)``."""
        self._webhook_requests.labels(result).inc()

    def event(self, outcome: str) -> None:
        """Count one Kubernetes event: fits ``EventRecorder(count=...)``."""
        self._events.labels(outcome).inc()

    def deleted(self, objects: int) -> None:
        """Count objects deleted from storage."""
        self._deleted.inc(objects)

    def abandoned(self, prefixes: int) -> None:
        """Say how many prefixes are listed as abandoned."""
        self._abandoned.set(prefixes)

    def watched(self, resource: str) -> None:
        """Note a sign of life of a watch: fits ``Reflector(on_seen=...)``."""
        self._watched.labels(resource).set_to_current_time()


LOG_FIELDS: Final = (
    "run", "uid", "generation", "attempt", "reason", "phase", "did", "pool", "step",
)  # fmt: skip
"""What a record may carry beyond its message, by ``extra={...}``; anything else is left out."""
MAX_LOG_TEXT: Final = 8 * 1024

_SECRETS: Final = re.compile(
    r"(?P<keep>\b(?:bearer|basic)\s+|://[^/\s:@]*:(?=[^/\s@]*@)"
    r"|X-Amz-(?:Signature|Credential|Security-Token)=|\b(?:AWS_SECRET_ACCESS_KEY|AWS_SESSION_TOKEN|HF_TOKEN)\W{1,3})"
    r"[^\s&\"'@]+"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*|\bhf_[A-Za-z0-9]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END[^-]*-----)?",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return *text* without bearer tokens, presigned signatures, passwords in URLs and private keys."""
    return _SECRETS.sub(lambda found: (found["keep"] or "") + "[redacted]", text)


class JsonFormatter(logging.Formatter):
    """One JSON object per record and line: time, level, logger, message, the LOG_FIELDS that it carries, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage())[:MAX_LOG_TEXT],
        }
        for field in LOG_FIELDS:
            if (value := getattr(record, field, None)) is not None:
                line[field] = value if isinstance(value, int | float | bool) else redact(str(value))[:MAX_LOG_TEXT]
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))[-MAX_LOG_TEXT:]
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send all records of *level* (a logging level's name) and above to *stream*, stderr by default, as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("aiohttp.access", "asyncio", "botocore", "boto3", "urllib3", "kubernetes", "kopf.objects"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
