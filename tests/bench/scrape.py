"""Counters out of Prometheus text, and what happened between two looks at them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

REQUESTS, EVENTS, SERVED, PASSES = (
    "rest_client_requests_total", "lorafinetune_kubernetes_events_total", "apiserver_request_total",
    "controller_runtime_reconcile_total",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Writes:
    """How many writes of the operator the API server has had, since both began."""

    methods: Counter[str]
    """By HTTP method, failed ones included; renewals of Leases are not in it."""
    events: int
    """Kubernetes events that the operator wrote: part of the above."""

    @classmethod
    def read(cls, operator: str, api_server: str) -> Writes:
        """Return the counts from the two programs' metrics.

        Our client counts Lease renewals among its PATCHes. Nobody else patches Leases (client-go updates them), so the
        API server knows how many there were; a renewal between the two looks makes it one off.
        """
        methods: Counter[str] = Counter()
        for labels, value in _samples(operator, REQUESTS):
            if labels["method"] != "GET":
                methods[labels["method"]] += round(value)
        for labels, value in _samples(api_server, SERVED):
            if labels["resource"] == "leases" and labels["verb"] == "PATCH":
                methods["PATCH"] -= round(value)
        told = sum(
            value for labels, value in _samples(operator, EVENTS) if labels["outcome"] in ("created", "repeated")
        )
        return cls(methods, round(told))

    def since(self, before: Writes) -> Writes:
        """Return what came in between."""
        methods = Counter({name: count - before.methods[name] for name, count in self.methods.items()})
        return Writes(+methods, self.events - before.events)

    @property
    def total(self) -> int:
        """All writes."""
        return self.methods.total()

    def __str__(self) -> str:
        """Return the parts, for people."""
        parts = ", ".join(f"{count} {name}" for name, count in sorted(self.methods.items()))
        return f"{parts}; {self.events} of them Kubernetes events"


def looked_at(operator: str) -> int:
    """Return how many passes the operator's loop has finished since it began."""
    return round(sum(value for _, value in _samples(operator, PASSES)))


def _samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    # The API server's text has tens of thousands of lines: only those of this metric are worth the parser's time.
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(f"{name}{{"))
    families = text_string_to_metric_families(lines)
    return [(one.labels, one.value) for family in families for one in family.samples]
