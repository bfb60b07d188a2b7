"""The pure parts of the bench: its numbers, its table, what it counts, and that an interruption is what it claims."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.engine.budgets import STILLBORN
from lorafinetune.engine.classify import Cause, Ending, classify
from lorafinetune.kube.seen import pod_seen
from tests.bench.contenders import Job, interruption
from tests.bench.machine import Machine
from tests.bench.samples import Samples, ratio
from tests.bench.scrape import Writes
from tests.bench.table import Row, render

NOW = datetime.datetime(2026, 11, 23, 12, 0, 0, tzinfo=datetime.UTC)


def test_what_did_not_happen_is_counted_and_not_measured() -> None:
    samples = Samples.of([3.0, None, 1.0, None, 2.0])
    assert samples == Samples((3.0, 1.0, 2.0), missing=2)
    assert samples.median == 2.0


def test_nothing_has_no_median() -> None:
    nothing = Samples.of([None])
    assert (nothing.median, nothing.percentile(99), nothing.missing) == (None, None, 1)


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (5, 5), (20, 20), (99, 99), (100, 99), (200, 198), (1000, 990)])
def test_p99_is_by_nearest_rank(count: int, wanted: int) -> None:
    assert Samples(tuple(float(one) for one in range(count, 0, -1))).percentile(99) == wanted


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: float) -> None:
    found = Samples(tuple(values)).percentile(percent)
    assert found in values
    assert sum(one <= found for one in values) >= len(values) * percent / 100 - 1e-9
    assert sum(one < found for one in values) < len(values) * percent / 100


def test_the_ratio_says_how_many_times_less_ours_is() -> None:
    assert ratio(Samples((10.0,)), Samples((0.1, 0.2, 0.3))) == 50.0
    assert ratio(None, Samples((1.0,))) is None
    assert ratio(Samples((1.0,)), Samples((), 1)) is None
    assert ratio(Samples((1.0,)), Samples((0.0,))) is None


def test_the_table() -> None:
    rows = [
        Row("interrupted", 1, Samples((0.05, 0.04, 0.12)), Samples((9.0, 10.0, 11.0))),
        Row("writes", 1, Samples((30.0,)), unit=""),
        Row("memory", 25, Samples((405.04,)), Samples((118.2,)), "MiB"),
        Row("created", 2, Samples((1.5,), missing=1), Samples((), missing=2)),
    ]
    assert render(rows).splitlines() == [
        "| measure | N | operator p50 | p99 | Job controller p50 | p99 | ratio of medians |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| interrupted | 1 | 0.05 s | 0.12 s | 10 s | 11 s | 200x |",
        "| writes | 1 | 30 | - | - | - | - |",
        "| memory | 25 | 405 MiB | - | 118 MiB | - | 0.29x |",
        "| created | 2 | 1.5 s (1 missing) | 1.5 s | - (2 missing) | - | - |",
    ]


def test_a_row_says_what_is_missing() -> None:
    assert Row("created", 2, Samples((1.0, 2.0)), Samples((1.0, 2.0))).missing is None
    lacking = Row("created", 20, Samples((1.0,), 19), Samples((), 20)).missing
    assert lacking == "created (N = 20): 19 missing of the operator, 20 missing of the Job controller"


def operator_metrics(patches: int, posts: int, events: int) -> str:
    return f"""\
# TYPE rest_client_requests_total counter
rest_client_requests_total{{code="200",method="GET"}} 50.0
rest_client_requests_total{{code="200",method="PATCH"}} {patches - 1}.0
rest_client_requests_total{{code="409",method="PATCH"}} 1.0
rest_client_requests_total{{code="201",method="POST"}} {posts}.0
lorafinetune_kubernetes_events_total{{outcome="created"}} {events}.0
lorafinetune_kubernetes_events_total{{outcome="dropped"}} 7.0
"""


def api_server_metrics(leases: int) -> str:
    labels = 'code="200",component="apiserver",group="coordination.k8s.io",scope="resource",subresource="",version="v1"'
    return f"""\
apiserver_request_total{{{labels},resource="leases",verb="PATCH"}} {leases}
apiserver_request_total{{{labels},resource="leases",verb="PUT"}} 1000
apiserver_request_total{{{labels},resource="pods",verb="PATCH"}} 2000
"""


def test_writes_are_counted_without_reads_and_lease_renewals() -> None:
    before = Writes.read(operator_metrics(patches=40, posts=3, events=1), api_server_metrics(leases=30))
    after = Writes.read(operator_metrics(patches=65, posts=9, events=5), api_server_metrics(leases=40))
    writes = after.since(before)
    assert (writes.total, writes.events) == (15 + 6, 4)
    assert str(writes) == "15 PATCH, 6 POST; 4 of them Kubernetes events"


def interrupted_pod() -> dict[str, object]:
    labels = {"lorafinetune.io/attempt": "1"}
    metadata = {"name": "timber-1", "uid": "u", "labels": labels, "creationTimestamp": "2026-11-23T11:59:59Z"}
    return {"metadata": metadata, "spec": {}, **interruption("trainer", NOW)}


def test_an_interruption_is_a_preemption_of_an_attempt_that_has_lived() -> None:
    pod = pod_seen(interrupted_pod())
    ending = classify(pod, None, progress=None, suspended=False, now=NOW.timestamp())
    assert isinstance(ending, Ending)
    assert ending.cause is Cause.PREEMPTED
    assert pod.started is not None
    assert pod.ended is not None
    assert pod.ended - pod.started > STILLBORN


def test_a_job_is_settled_once_it_has_written_down_its_new_pod() -> None:
    job = Job()
    assert not job.settled({}, 1)
    assert not job.settled({"status": {"active": 1, "uncountedTerminatedPods": {"failed": ["u"]}}}, 2)
    assert not job.settled({"status": {"uncountedTerminatedPods": {}}}, 2)
    assert job.settled({"status": {"active": 1, "uncountedTerminatedPods": {}}}, 2)


def test_the_machine_is_named_with_its_load() -> None:
    machine = Machine("2026-11-23 12:00 UTC", 2, "Z80", (3.61, 5.0, 5.47))
    line = machine.line("Kubernetes v1.36.3", (1.0, 2.0, 3.0))
    assert line.startswith(
        "2026-11-23 12:00 UTC; 2 cores (Z80); load average at start 3.6 5.0 5.5, at end 1.0 2.0 3.0;"
    )
    assert "Kubernetes v1.36.3" in line
    assert Machine.look().cores >= 1
