"""Where the next attempt runs."""

import pytest

from lorafinetune.api.finetune import PlacementSpec
from lorafinetune.engine.pools import Placed, Unplaceable, choose
from tests.unit.engine.given import pool

POOLS = {
    "dear": pool("0.9"),
    "cheap": pool("0.2"),
    "hidden": pool("0.1", default=False),
    "sure": pool("1.2", capacity="OnDemand", default=False),
    "surer": pool("1.1", capacity="OnDemand", default=False),
}


@pytest.mark.parametrize(
    ("placement", "preemptions", "want"),
    [
        ({}, 0, "cheap"),
        ({"pools": ["dear", "cheap"]}, 0, "dear"),
        ({"pools": ["hidden"]}, 0, "hidden"),
        ({"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPreemptions": 3}}, 2, "cheap"),
        ({"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPreemptions": 3}}, 3, "sure"),
    ],
)
def test_chosen(placement, preemptions, want):
    placed = choose(PlacementSpec.model_validate(placement), POOLS, preemptions=preemptions)
    assert isinstance(placed, Placed)
    assert placed.name == want
    assert placed.on_demand_price == "1.1"


@pytest.mark.parametrize(
    ("placement", "pools", "reason", "words"),
    [
        ({"pools": ["nope"]}, POOLS, "UnknownPool", "'nope'"),
        ({"onDemand": {"pools": ["gone"]}}, POOLS, "UnknownPool", "'gone'"),
        ({"onDemand": {"pools": ["cheap"]}}, POOLS, "NotOnDemand", "capacityType is Spot"),
        ({}, {}, "NoDefaultPool", "none"),
        ({}, {"hidden": POOLS["hidden"]}, "NoDefaultPool", "hidden"),
    ],
)
def test_refused(placement, pools, reason, words):
    refused = choose(PlacementSpec.model_validate(placement), pools, preemptions=0)
    assert isinstance(refused, Unplaceable)
    assert refused.reason == reason
    assert words in refused.message
