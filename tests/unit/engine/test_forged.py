"""What trainer or status say may be beyond all measure, or forged: it is refused where it is read, or does no harm.

A status may hold all that the API server takes, for people can write it, and other versions of us have. Each value that
its schema lets in is put into each of its fields in turn: either the whole cannot be read (and the run says so), or a
pass can be made of it, and its own status be written.
"""

# ruff: noqa: E501 - a table is read by its rows

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import pytest
from pydantic import ValidationError

from lorafinetune.api.schema import structural
from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.contract.event import Event, EventType, Phase
from lorafinetune.engine import news
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.progress import Progress, fold
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, pod, pool, seen, spec

LARGEST: Final = 2**63 - 1
TIMES: Final = (
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59",
    "2026-12-24T18:00:00+99:99", "2026-12-24T18:00:00x5Z", "2026-12-24T18:00:00.123456789z", "2400-02-29T00:00:00Z",
)  # fmt: skip
WORDS: Final = ("", "abc", "NaN", "Infinity", "-1", "1e999999999", "Preempted", "é\n")
SCHEMA: Final = structural(LoRAFineTuneStatus)
ENTRY: Final = {
    "pod": "timber-0b1c2-1",
    "podUID": "pod-1",
    "pool": "spot",
    "capacityType": "Spot",
    "pricePerHour": "0.3",
}
STATUS: Final[dict[str, Any]] = {
    "phase": "Running", "activity": "Training", "activitySince": stamp(NOW - 50), "startTime": stamp(NOW - 900),
    "times": [{"activity": "Training", "seconds": 99}], "attempt": 2, "secondsPerStep": "1.6", "step": 90, "steps": 500,
    "conditions": [
        {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": stamp(NOW)}
    ],
    "totals": {"attempts": 0, "cost": "1", "lost": [{"cause": "Error", "attempts": 1, "seconds": 9, "cost": "0.1"}]},
    "lost": [{"cause": "Preempted", "attempts": 1, "seconds": 9, "cost": "0.1"}],
    "checkpoint": {"attempt": 1, "step": 80, "uri": "s3://loras/x/", "manifestSha256": "0" * 64, "time": stamp(NOW - 80)},
    "attempts": [
        {**ENTRY, "number": 1, "created": stamp(NOW - 900), "scheduled": stamp(NOW - 800), "started": stamp(NOW - 790),
         "ended": stamp(NOW - 300), "startSeconds": 30, "cause": "Preempted", "reason": "Deleted", "message": "taken",
         "fromStep": 0, "toStep": 85, "durableStep": 80, "cost": "0.1", "lostSeconds": 9, "node": "node-b",
         "generatingSince": stamp(NOW - 780), "generatingUntil": stamp(NOW - 700)},
        {**ENTRY, "number": 2, "pod": "timber-0b1c2-2", "podUID": "pod-2", "created": stamp(NOW - 200),
         "scheduled": stamp(NOW - 100), "started": stamp(NOW - 90)},
    ],
}  # fmt: skip
"""A run in its second attempt."""
ABSENT: Final[dict[str, Any]] = {
    "limit": {"reason": "MaxCostReached", "message": "", "time": stamp(NOW - 9), "attempt": 2},
    "artifact": {"uri": "s3://loras/x/", "file": "x", "sha256": "0" * 64, "size": 1},
}
"""What it has not, as it would be: one member of it is forged, the others are not."""


def leaves(schema: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield where a value can stand, the first of each list, and each value that the schema lets in there."""
    if schema["type"] == "object":
        for name, inner in schema["properties"].items():
            yield from leaves(inner, (*path, name))
    elif schema["type"] == "array":
        yield from leaves(schema["items"], (*path, 0))
    elif schema["type"] == "integer":
        yield from ((path, one) for one in (schema.get("minimum", -LARGEST), 1, 2**40, schema.get("maximum", LARGEST)))
    elif schema["type"] == "string" and "enum" not in schema:
        words = TIMES if schema.get("format") == "date-time" else (*WORDS, "w" * schema["maxLength"])
        yield from ((path, one) for one in words if len(one) <= schema.get("maxLength", 99))


def forged(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    made: Any = deepcopy(STATUS)
    inside = made
    for name, following in pairwise(path):
        if isinstance(inside, list):
            inside = inside[0]
        else:
            inside = inside.setdefault(name, [{}] if following == 0 else dict(ABSENT.get(str(name), {})))
    inside[path[-1]] = value
    return dict(made)


TRAINING: Final = Progress(2, sequence=9, step=90, phase=Phase.TRAINING, phase_since=NOW - 5, heard=NOW - 1)
DEMANDING: Final = spec(
    limits={"deadline": stamp(NOW + 86400), "maxCost": "9", "maxDuration": "9h"},
    placement={"pools": ["spot"], "onDemand": {"pools": ["od"], "afterPending": "2h"}},
    ttlSecondsAfterFinished=60,
)
POOLS: Final = {"spot": pool(), "od": pool("1.2", capacity="OnDemand", default=False)}
PLAIN: Final = seen(spec=DEMANDING, pools=POOLS, pods=(pod(2, bound=NOW - 100),), progress=TRAINING)
SITUATIONS: Final[dict[str, Observation]] = {
    "training": PLAIN,
    "its pod is gone": replace(PLAIN, pods=(), progress=None, nodes={}),
    "suspended": replace(PLAIN, spec=DEMANDING.model_copy(update={"suspend": True})),
    "deleted": replace(PLAIN, run=replace(PLAIN.run, deleting_since=NOW - 5)),
}


@pytest.mark.parametrize("given", SITUATIONS.values(), ids=SITUATIONS)
def test_no_status_that_the_api_server_takes_makes_a_pass_fail(given: Observation) -> None:
    refused, failed, taken = set(), [], 0
    for path, value in leaves(SCHEMA):
        try:
            status = LoRAFineTuneStatus.model_validate(forged(path, value))
            news.recall([status], NOW)
            said = decide(replace(given, status=status)).status.to_json()
        except ValidationError:
            refused.add((path[-1], value))  # the run says which field it is
            continue
        except Exception as error:
            failed.append(f"status.{'.'.join(map(str, path))}: {value!r}: {error!r}")
            continue
        taken += 1
        try:
            written = LoRAFineTuneStatus.model_validate(said)
            news.fold({}, status, written, NOW)
            assert all(abs(one) <= LARGEST for one in numbers(said))
        except Exception as error:
            failed.append(f"status.{'.'.join(map(str, path))}: {value!r}: {error!r}")
    assert not failed
    assert {("dry", TIMES[0]), ("ended", TIMES[4]), ("activitySince", TIMES[5]), ("cost", "abc")} <= refused
    assert taken > 400


def numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, int):
        yield value


TOLD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # name, what a trainer tells, what the status says of it
    ("as it should be", {"loss": 0.08312, "mfu": 0.41, "memory_bytes": 20 * 2**30}, {"loss": "0.0831", "mfu": "41%", "memory": "20.0 GiB"}),
    ("diverged", {"loss": 3.2e13}, {"loss": "3.200e+13"}),
    ("diverged downward", {"loss": -1e12}, {"loss": "-1.000e+12"}),
    ("as far as can be", {"loss": -1.7e308}, {"loss": "-1.700e+308"}),
    ("a GPU that nobody has", {"mfu": 1e9}, {"mfu": "100%"}),
    ("all memory", {"memory_bytes": 2**53}, {"memory": "8388608.0 GiB"}),
    ("very fast", {"images_per_second": 1e300}, {"imagesPerSecond": "1e+300"}),
    ("very slow", {"seconds_per_step": 1e9, "save_seconds": 1e9}, {"secondsPerStep": "1e+09", "saveSeconds": "1e+09"}),
    ("no time at all", {"seconds_per_step": 5e-324, "save_seconds": 0.0}, {"secondsPerStep": "4.94e-324"}),
]  # fmt: skip


@pytest.mark.parametrize(("told", "want"), [one[1:] for one in TOLD], ids=[one[0] for one in TOLD])
def test_whatever_a_trainer_tells_the_status_can_be_written(told: dict[str, Any], want: dict[str, Any]) -> None:
    event = Event(type=EventType.PROGRESS, run_uid="u", attempt=2, sequence=10, step=91, phase=Phase.TRAINING, **told)
    given = replace(PLAIN, status=LoRAFineTuneStatus.model_validate(STATUS), progress=fold(TRAINING, event, NOW))
    said = decide(given).status.to_json()
    assert LoRAFineTuneStatus.model_validate(said)
    assert {name: said[name] for name in want} == want


BEYOND: list[dict[str, Any]] = [
    {"memory_bytes": 2**90}, {"done": 10**4000}, {"total": 2**64}, {"exit_code": 2**31}, {"exit_code": -(2**40)},
    {"seconds_per_step": 1e300}, {"save_seconds": 1e10}, {"seconds_per_step": float("inf")},
    {"checkpoint": {"attempt": 2, "step": 2**63, "manifest_sha256": "0" * 64}},
    {"checkpoint": {"attempt": 2**63, "step": 2, "manifest_sha256": "0" * 64}},
]  # fmt: skip


@pytest.mark.parametrize("told", BEYOND, ids=[f"{one}"[:40] for one in BEYOND])
def test_what_no_status_can_hold_is_no_event(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(told))):
        Event.model_validate({"type": "progress", "run_uid": "u", "attempt": 2, "sequence": 1, "step": 1, **told})
