"""The pure parts of the bench: its numbers, its table, what it counts, and that an interruption is what it claims."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.engine.budgets import STILLBORN
from lorafinetune.engine.classify import Cause, Ending, classify
from lorafinetune.engine.evidence import Evidence
from lorafinetune.kube.seen import pod_seen
from tests.bench import limits
from tests.bench.contenders import Job, interruption
from tests.bench.machine import Machine
from tests.bench.measures import Owner
from tests.bench.podwatch import Ledger
from tests.bench.population import Template
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


def test_the_ratio_is_ours_over_theirs() -> None:
    assert ratio(Samples((4.0, 5.0, 6.0)), Samples((10.0,))) == 0.5
    assert ratio(Samples((1.0,)), None) is None
    assert ratio(Samples((), 1), Samples((1.0,))) is None
    assert ratio(Samples((1.0,)), Samples((0.0,))) is None


def test_the_table() -> None:
    rows = [
        Row("replaced-1", "interrupted", 1, Samples((0.05, 0.04, 0.12)), Samples((9.0, 10.0, 11.0))),
        Row("life-writes", "writes", 1, Samples((30.0,)), unit=""),
        Row("idle-memory", "memory", 10_000, Samples((405.04,)), Samples((118.2,)), "MiB"),
        Row("applied-2", "created", 2, Samples((1.5,), missing=1), Samples((), missing=2), tier="real"),
    ]
    assert render(rows).splitlines() == [
        "| measure | tier | N | operator p50 | p99 | Job controller p50 | p99 | ratio of medians |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
        "| interrupted | hollow | 1 | 0.05 s | 0.12 s | 10 s | 11 s | 0.005x |",
        "| writes | hollow | 1 | 30 | - | - | - | - |",
        "| memory | hollow | 10,000 | 405 MiB | - | 118 MiB | - | 3.43x |",
        "| created | real | 2 | 1.5 s (1 missing) | 1.5 s | - (2 missing) | - | - |",
    ]


def test_only_what_the_operator_lacks_is_a_failure() -> None:
    assert Row("applied-2", "created", 2, Samples((1.0, 2.0)), Samples((1.0,), 1)).missing is None
    lacking = Row("applied-20", "created", 20, Samples((1.0,), 19), Samples((), 20)).missing
    assert lacking == "created (N = 20): 19 missing of the operator"


def test_the_file_of_limits_can_be_read_and_its_margins_are_what_they_say() -> None:
    each = limits.Limits.read().each
    assert {"replaced-1.ratio", "replaced-100.ratio", "replaced-1000.ratio", "replaced-100.p50"} <= {
        one.name for one in each
    }
    assert next(one for one in each if one.name == "idle-memory-10000.p50").limit == 1024
    assert next(one for one in each if one.name == "duplicates.p50").limit == 0
    for one in each:
        if one.measured is not None and one.measured.mean:
            assert one.margin == pytest.approx(one.limit / one.measured.mean, rel=0.05), one.name
        else:
            assert one.margin is None, one.name


def limit(**changes: Any) -> limits.Limit:
    known = {"key": "replaced-1", "figure": "ratio", "limit": 0.5, "decides": True, "why": "twice as fast"}
    return limits.Limit.model_validate(known | changes)


@pytest.mark.parametrize(
    ("decides", "figures", "broken", "fatal"),
    [
        (True, {"replaced-1": {"ratio": 0.5}}, False, False),
        (True, {"replaced-1": {"ratio": 0.51}}, True, True),
        (False, {"replaced-1": {"ratio": 0.51}}, True, False),
        (True, {"replaced-1": {"p50": 9.0}}, False, False),
        (True, {"replaced-100": {"ratio": 9.0}}, False, False),
    ],
)
def test_a_limit_is_broken_by_more_and_only_some_decide(
    decides: bool, figures: limits.Figures, broken: bool, fatal: bool
) -> None:
    (verdict,) = limits.Limits((limit(decides=decides),)).judge(figures)
    assert (verdict.broken, verdict.fatal) == (broken, fatal)


def test_a_broken_limit_is_named_with_its_value() -> None:
    (verdict,) = limits.Limits((limit(),)).judge({"replaced-1": {"ratio": 0.75}})
    assert verdict.sentence() == "replaced-1.ratio is 0.75, above its limit of 0.5: twice as fast"


def test_figures_of_a_row_are_what_limits_look_at() -> None:
    found = limits.figures([Row("replaced-1", "interrupted", 1, Samples((1.0, 2.0, 6.0)), Samples((8.0,)))])
    assert found == {"replaced-1": {"p50": 2.0, "p99": 6.0, "ratio": 0.25}}


def test_several_runs_are_summed_up_by_mean_and_spread() -> None:
    runs: list[limits.Figures] = [{"a": {"p50": 1.0}}, {"a": {"p50": 2.0}}, {"a": {"p50": 6.0, "p99": 7.0}}]
    seen = limits.summary(runs)
    assert seen == {"a.p50": limits.Seen(3.0, 5.0, 3, 6.0), "a.p99": limits.Seen(7.0, 0.0, 1, 7.0)}
    assert limits.together(limits.Limits((limit(key="a", figure="p50", limit=5.0),)), seen).splitlines()[2:] == [
        "| a.p50 | 3 | 5 | 3 | 6 | <= 5 | **BROKEN** |",
        "| a.p99 | 7 | 0 | 1 | 7 |  |  |",
    ]


def test_what_was_measured_is_written_into_the_file(tmp_path: Path) -> None:
    kept = limits.Limits((limit(key="a", figure="p50", limit=6.0, unit="%"), limit(key="b", figure="p50")))
    runs: list[limits.Figures] = [{"a": {"p50": 1.0}}, {"a": {"p50": 2.0}}]
    file = tmp_path / "limits.yaml"
    written = limits.measured(kept, limits.summary(runs), "2026-11-23", '2 cores: "x"; load 0.5')
    file.write_text(limits.text(written, "# said before\n"), encoding="utf-8")
    assert limits.heading(file) == "# said before\n"
    assert limits.Limits.read(file) == written
    first, second = written.each
    assert first.measured is not None
    assert (first.measured.mean, first.measured.spread, first.measured.runs, first.margin) == (1.5, 1.0, 2, 4.0)
    assert second.measured is None


def pod_event(name: str, phase: str = "Pending", owner: str = "o") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "ownerReferences": [{"uid": owner}]},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("events", "duplicates"),
    [
        ([("ADDED", "a", "Pending"), ("MODIFIED", "a", "Failed"), ("ADDED", "b", "Pending")], set()),
        ([("ADDED", "a", "Pending"), ("DELETED", "a", "Pending"), ("ADDED", "b", "Pending")], set()),
        ([("ADDED", "a", "Pending"), ("ADDED", "b", "Pending")], {"b"}),
        ([("ADDED", "a", "Pending"), ("MODIFIED", "a", "Running"), ("ADDED", "b", "Pending")], {"b"}),
        ([("ADDED", "a", "Pending"), ("DELETED", "a", "Pending"), ("ADDED", "a", "Pending")], {"a"}),
    ],
)
def test_two_live_pods_of_one_owner_and_an_attempt_made_twice_are_seen(
    events: list[tuple[str, str, str]], duplicates: set[str]
) -> None:
    ledger = Ledger()
    for kind, name, phase in events:
        ledger.take(kind, pod_event(name, phase), 0.0)
    assert ledger.duplicates == duplicates


def test_a_copy_of_a_run_has_names_and_uids_of_its_own_everywhere() -> None:
    uid, new = "11111111-aaaa", "22222222-bbbb"
    run = {
        "apiVersion": "lorafinetune.io/v1alpha1",
        "kind": "LoRAFineTune",
        "metadata": {"name": "template", "uid": uid, "finalizers": ["f"]},
        "spec": {"x": 1},
        "status": {
            "prefix": "s3://loras/bench/template-11111111/",
            "attempts": [{"number": 1, "pod": "template-11111-1", "podUID": "old"}],
        },
    }
    pod = {
        "metadata": {
            "name": "template-11111-1",
            "labels": {"lorafinetune.io/run": "template", "lorafinetune.io/run-uid": uid},
            "annotations": {},
            "finalizers": ["g"],
            "ownerReferences": [{"name": "template", "uid": uid}],
            "uid": "old",
            "resourceVersion": "7",
        },
        "spec": {"containers": []},
    }
    model, owner = Template(run, pod), Owner("crowd-7", new)
    made = model.pod_of(owner)
    assert made["metadata"] == {
        "name": "crowd-7-22222-1",
        "labels": {"lorafinetune.io/run": "crowd-7", "lorafinetune.io/run-uid": new},
        "annotations": {},
        "finalizers": ["g"],
        "ownerReferences": [{"name": "crowd-7", "uid": new}],
    }
    assert model.status_of(owner, "fresh")["status"] == {
        "prefix": "s3://loras/bench/crowd-7-22222222/",
        "attempts": [{"number": 1, "pod": "crowd-7-22222-1", "podUID": "fresh"}],
    }
    assert uid not in json.dumps(model.run_named("crowd-7"))


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
    ending = classify(Evidence(pod=pod, node=None, now=NOW.timestamp()))
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
