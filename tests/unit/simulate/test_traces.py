"""Trace files: what they say at each instant, and what is said of bad ones."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.simulate.traces import Trace, TraceError, body_of, from_samples, parse, read, write

GOOD: dict[str, Any] = {
    "source": "someone/traces, 2023",
    "instance": "p3.2xlarge (1x V100)",
    "start": "2023-02-15",
    "encoding": "members that nobody reads are let pass",
    "gap_seconds": 195,
    "zones": {"east-1a": [0, 2, 3, 1], "east-1b": [6]},
    "prices": {"east-1a": {"spot": "0.9", "onDemand": "3.06"}},
}


def test_a_file_says_when_there_was_capacity_and_when_that_changes(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(GOOD))
    traces = read(tmp_path / "one.json")
    assert [traces.available("east-1a", gap * 195.0) for gap in range(6)] == [False, False, True, True, True, False]
    assert traces.next_change("east-1a", 0.0) == 390.0
    assert traces.next_change("east-1a", 390.0) == 975.0
    assert traces.next_change("east-1a", 1000.0) == 1170.0 + 390.0  # its last run and its next first one are alike
    assert traces.available("east-1a", 1170.0 + 400.0)  # it begins again
    assert traces.available("east-1b", 5e6)
    assert traces.next_change("east-1b", 12.0) is None
    assert traces.seconds == 1170.0
    assert traces.zones["east-1a"].availability == 0.5
    assert traces.prices["east-1a"].on_demand == Decimal("3.06")
    assert traces.instance == "p3.2xlarge (1x V100)"


def test_what_is_written_is_read_as_it_was(tmp_path: Path) -> None:
    traces = parse(GOOD, "good")
    write(traces, tmp_path / "copy.json")
    assert read(tmp_path / "copy.json") == traces
    assert body_of(traces)["zones"] == GOOD["zones"]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.floats(0.0, 1e4))
def test_a_trace_is_its_samples_and_the_next_change_is_the_next(seen: list[bool], at: float) -> None:
    trace = from_samples({"z": tuple(seen)}, 60.0).zones["z"]
    assert trace.samples() == tuple(seen)
    here = trace.available(at)
    assert here is seen[int(at // 60) % len(seen)]
    change = trace.next_change(at)
    if change is None:
        assert len(set(seen)) == 1
        return
    assert change > at
    assert trace.available(change) is not here
    assert all(seen[gap % len(seen)] is here for gap in range(int(at // 60), round(change / 60)))


def test_there_is_no_time_before_the_start() -> None:
    with pytest.raises(ValueError, match="begins at 0"):
        Trace((1, 1), 195.0).available(-1.0)


BAD: list[tuple[str, Any, str]] = [
    ("no object", [1], "must be an object"),
    ("no gap", {"zones": {"a": [1]}}, "gap_seconds is None"),
    ("a gap of nothing", GOOD | {"gap_seconds": 0}, "gap_seconds is 0"),
    ("a gap that is true", GOOD | {"gap_seconds": True}, "gap_seconds is True"),
    ("no zones", GOOD | {"zones": {}}, "zones is missing or empty"),
    ("a name longer than a label", GOOD | {"zones": {"b" * 64: [6]}}, "at most 63 lower-case letters"),
    ("a name in words", GOOD | {"zones": {"West 2a": [6]}}, "zone 'West 2a': name it as a pool can be named"),
    ("no name", GOOD | {"zones": {"": [6]}}, "zone '': name it as a pool can be named"),
    ("no runs", GOOD | {"zones": {"b": []}}, "zone 'b': write a list of run lengths"),
    ("no time at all", GOOD | {"zones": {"b": [0]}}, "zone 'b': 0 gaps"),
    ("half a gap", GOOD | {"zones": {"b": [1, 2.5]}}, "zone 'b': run length 2 is 2.5"),
    ("an empty run", GOOD | {"zones": {"b": [1, 0, 3]}}, "zone 'b': run length 2 is 0"),
    ("ages", GOOD | {"zones": {"b": [10**12]}}, "zone 'b': 1000000000000 gaps"),
    ("lengths that differ", GOOD | {"zones": {"b": [4], "c": [5]}}, "zone 'c' is 5 gaps long, zone 'b' 4: cut all"),
    ("a source in numbers", GOOD | {"source": 7}, "source is 7"),
    ("prices of a stranger", GOOD | {"prices": {"x": {}}}, "prices name zone 'x'"),
    ("half a price", GOOD | {"prices": {"east-1b": {"spot": "1"}}}, "zone 'east-1b': prices.onDemand is None"),
    ("a price too fine", GOOD | {"prices": {"east-1b": {"spot": "0.1234567"}}}, "6 digits after the point"),
    ("a price as a number", GOOD | {"prices": {"east-1b": {"spot": 1}}}, "zone 'east-1b': prices.spot is 1"),
    ("a price that is none", GOOD | {"prices": {"east-1b": {"spot": "NaN"}}}, "prices.spot is 'NaN'"),
    ("a price for nothing", GOOD | {"prices": {"east-1b": {"spot": "0"}}}, "prices.spot is '0'"),
]


@pytest.mark.parametrize(("body", "want"), [pytest.param(body, want, id=name) for name, body, want in BAD])
def test_a_bad_file_is_refused_with_file_zone_and_fix(tmp_path: Path, body: Any, want: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(body))
    with pytest.raises(TraceError) as refused:
        read(tmp_path / "bad.json")
    assert str(tmp_path / "bad.json") in str(refused.value)
    assert want in str(refused.value)


def test_what_is_no_json_or_not_there_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(TraceError, match=r"bad\.json: is no JSON .* docs/simulate\.md"):
        read(tmp_path / "bad.json")
    with pytest.raises(TraceError, match=r"none\.json: No such file"):
        read(tmp_path / "none.json")
