"""What people are shown of a pool."""

import pytest

from lorafinetune.engine.fleet import Fading, PoolKnown
from lorafinetune.engine.poolstate import pool_status
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, pool

HOURS = 3600.0


@pytest.mark.parametrize(
    ("known", "most", "want"),
    [
        (PoolKnown(), None, {"state": "Open", "live": 0, "waiting": 0}),
        (PoolKnown(live=3), 4, {"state": "Open", "live": 3, "waiting": 0}),
        (PoolKnown(live=4, placed=NOW - 5), 4, {"state": "Full", "live": 4, "lastPlaced": stamp(NOW - 5)}),
        (
            PoolKnown(live=1, waiting=1, dry=NOW - 60, tries=1, why="no node in 10m"),
            None,
            {
                "state": "Dry",
                "waiting": 1,
                "drySince": stamp(NOW - 60),
                "message": "an attempt waits for it; others try it "
                f"from {stamp(NOW + 3540)} on at the latest: no node in 10m",
            },
        ),
        (PoolKnown(live=1), 1, {"state": "Full", "message": "1 attempt is on it, and maxConcurrentAttempts is 1"}),
        (
            PoolKnown(dry=NOW - 60, tries=1, why="no node in 10m: 0/9 nodes are available: 9 x. preemption: 0/9 y."),
            None,
            {"message": f"tried again from {stamp(NOW + 540)} on: no node in 10m: 0/9 nodes are available: 9 x."},
        ),
        (PoolKnown(dry=NOW - 600, tries=1), None, {"state": "Open", "message": "due for a try after it was dry"}),
        (
            PoolKnown(taken=NOW, held=Fading(2 * HOURS, NOW), preemptions=Fading(2.0, NOW)),
            None,
            {"lastTaken": stamp(NOW), "lifetime": "1h"},
        ),
        (PoolKnown(serving=1, serving_since=NOW - HOURS), None, {"lifetime": None}),
    ],
    ids=["new", "room", "full", "dry", "full with one", "the scheduler's words", "due for a try", "takes", "no takes"],
)
def test_what_is_shown(known, most, want):
    shown = pool_status(known, pool(most=most), NOW).to_json()
    assert {name: shown.get(name) for name in want} == want
