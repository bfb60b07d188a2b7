"""Where the next attempt runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.api.status import TimeStatus
from lorafinetune.engine.attempts import settle
from lorafinetune.engine.classify import Cause
from lorafinetune.engine.fallback import RETURNING
from lorafinetune.engine.fleet import FIRST_PAUSE, Fading, PoolKnown
from lorafinetune.engine.pools import Placed, Unplaceable, Waiting, choose
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, ended, pod, pool, seen, spec, status

POOLS = {
    "dear": pool("0.9", memory=24),
    "cheap": pool("0.2", memory=16),
    "hidden": pool("0.1", default=False),
    "sure": pool("1.2", capacity="OnDemand", default=False),
    "surer": pool("1.1", capacity="OnDemand", default=False),
}
BOTH = {"pools": ["dear", "cheap"]}
FALLBACK = {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPreemptions": 3}}
DRY = PoolKnown(dry=NOW - 60, tries=1)
DRY_LONG_AGO = PoolKnown(dry=NOW - FIRST_PAUSE - 1, tries=1)
TAKEN = PoolKnown(taken=NOW - 60, takes=Fading(1.0, NOW - 60))
TAKEN_LONG_AGO = PoolKnown(taken=NOW - 3600, takes=Fading(1.0, NOW - 3600))


def at(placement: dict[str, Any], *, pools: Any = None, **changes: Any) -> Any:
    """The choice for a run of that placement; *changes* are those of the observation."""
    given = seen(spec=spec(placement=placement), pools=pools or POOLS, **changes)
    return choose(given, settle(given).status)


def on(name: str, number: int = 1, **changes: Any) -> Any:
    """An attempt that has ended, preempted unless it says otherwise."""
    capacity = "OnDemand" if name.startswith("sure") else "Spot"
    plain = {"cause": "Preempted", "ended": stamp(NOW - 10), "durable_step": 100 * number, "from_step": 0}
    return attempt(number, pool=name, capacity_type=capacity, **(plain | changes))


def nowhere(name: str, number: int) -> Any:
    return on(name, number, cause=Cause.NO_CAPACITY.value, started=None, scheduled=None, durable_step=None)


@pytest.mark.parametrize(
    ("placement", "fleet", "want"),
    [
        pytest.param({}, {}, "cheap", id="the cheapest default one"),
        pytest.param(BOTH, {}, "dear", id="in the order of the list"),
        pytest.param(BOTH | {"order": "CheapestFirst"}, {}, "cheap", id="by price"),
        pytest.param({"pools": ["hidden"]}, {}, "hidden", id="a named one need not be default"),
        pytest.param(BOTH, {"dear": TAKEN}, "cheap", id="after the pool that just took a node"),
        pytest.param(BOTH, {"dear": TAKEN_LONG_AGO}, "dear", id="which is forgiven after a while"),
        pytest.param({}, {"cheap": TAKEN}, "cheap", id="but not for a price that is more than three times as high"),
        pytest.param(
            {"pools": ["cheap", "hidden"], "order": "CheapestFirst"},
            {"hidden": TAKEN},
            "cheap",
            id="for one of less than that",
        ),
        pytest.param(BOTH, {"dear": DRY}, "cheap", id="not on a dry one"),
        pytest.param({}, {"cheap": DRY}, "dear", id="however cheap"),
        pytest.param(BOTH, {"dear": DRY_LONG_AGO}, "dear", id="which is tried again later"),
        pytest.param(
            BOTH, {"dear": PoolKnown(dry=NOW - FIRST_PAUSE - 1, tries=2)}, "cheap", id="after a pause that grows"
        ),
        pytest.param(
            BOTH, {"dear": PoolKnown(dry=NOW - 3601, tries=99)}, "dear", id="to an hour at most: it is never given up"
        ),
        pytest.param(
            BOTH,
            {"dear": PoolKnown(dry=NOW - FIRST_PAUSE - 1, tries=1, waiting=1)},
            "cheap",
            id="one that waits there is the try",
        ),
        pytest.param(
            BOTH,
            {"dear": PoolKnown(taken=NOW - 60, takes=Fading(1.0, NOW - 60), live=50)},
            "dear",
            id="one node of many says little",
        ),
        pytest.param(
            BOTH,
            {"dear": PoolKnown(dry=NOW - 60, tries=1, placed=NOW - 9000), "cheap": PoolKnown(dry=NOW - 60, tries=1)},
            "dear",
            id="all dry: where there last was a node",
        ),
        pytest.param(
            BOTH,
            {"dear": PoolKnown(dry=NOW - 60, tries=1), "cheap": PoolKnown(dry=NOW - 60, tries=1, taken=NOW - 900)},
            "cheap",
            id="which a take tells as well as a placement",
        ),
    ],
)
def test_where(placement, fleet, want):
    placed = at(placement, fleet=fleet)
    assert isinstance(placed, Placed)
    assert placed.name == want
    assert placed.on_demand_price == "1.1"


VAIN = nowhere("dear", 1).model_copy(
    update={"created": stamp(NOW - 700), "dry": stamp(NOW - 100), "reason": "PoolDry", "ended": stamp(NOW - 90)}
)
WAITS_ON = VAIN.model_copy(update={"cause": None, "ended": None})
BUSY, BUSIER, ONCE = (PoolKnown(placed=NOW - ago) for ago in (200, 50, 900))


@pytest.mark.parametrize(
    ("attempts", "known", "want"),
    [
        pytest.param([], BUSY, "dear", id="any other run goes where nodes are given"),
        pytest.param([VAIN], BUSY, "cheap", id="the one that got none meanwhile goes elsewhere"),
        pytest.param([WAITS_ON], BUSY, "cheap", id="at once"),
        pytest.param([WAITS_ON], BUSIER, "cheap", id="and would still, as long as it waits there"),
        pytest.param([VAIN], BUSIER, "dear", id="but it tries again where a node was given since"),
        pytest.param([VAIN.model_copy(update={"dry": stamp(NOW - 601)})], BUSY, "dear", id="or after a while"),
        pytest.param([VAIN], ONCE, "dear", id="that nodes were given before it came says nothing"),
        pytest.param([VAIN.model_copy(update={"reason": "PoolChanged"})], BUSY, "dear", id="a pool that was mended"),
    ],
)
def test_a_run_that_gets_no_node_where_others_do(attempts, known, want):
    pods = (pod(1, pool="dear", phase="Pending", node=None, started=None),) if attempts == [WAITS_ON] else ()
    given = seen(spec=spec(placement=BOTH), pools=POOLS, status=status(*attempts), fleet={"dear": known}, pods=pods)
    assert choose(given, given.status).name == want


def test_a_choice_among_dry_pools_says_so():
    assert at(BOTH, fleet={"dear": DRY, "cheap": DRY}).dry
    assert not at(BOTH, fleet={"dear": DRY}).dry


@pytest.mark.parametrize(
    ("placement", "history", "fleet", "want"),
    [
        pytest.param(FALLBACK, status(preemptions=2), {}, "cheap", id="not yet"),
        pytest.param(FALLBACK, status(preemptions=3), {}, "sure", id="after so many preemptions"),
        pytest.param(
            FALLBACK, status(preemptions=5, preemptions_before=3), {}, "cheap", id="since it last was on demand"
        ),
        pytest.param(
            {"pools": ["cheap"], "onDemand": {"pools": ["sure"]}},
            status(preemptions=4),
            {},
            "cheap",
            id="fewer than the default",
        ),
        pytest.param(
            {"pools": ["cheap"], "onDemand": {"pools": ["sure"]}},
            status(preemptions=5),
            {},
            "sure",
            id="the default of five",
        ),
        pytest.param(
            {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}},
            status(preemptions=50),
            {},
            "cheap",
            id="unless another rule says when",
        ),
        pytest.param(
            {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}},
            status(activity="PoolDry", activity_since=stamp(NOW - 1200)),
            {"cheap": DRY},
            "sure",
            id="after so long a wait",
        ),
        pytest.param(
            {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}},
            status(activity="PoolDry", activity_since=stamp(NOW - 1200), waited_before=60),
            {"cheap": DRY},
            "cheap",
            id="since it last had a node",
        ),
        pytest.param(
            {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}},
            status(activity="Image", activity_since=stamp(NOW - 1200)),
            {},
            "cheap",
            id="what else it waits for does not count",
        ),
        pytest.param(FALLBACK, status(preemptions=3), {"sure": DRY}, "cheap", id="on demand may be dry too"),
        pytest.param(
            FALLBACK | {"onDemand": {"pools": ["sure", "surer"], "afterPreemptions": 3}},
            status(preemptions=3),
            {"sure": DRY},
            "surer",
            id="then the next of its pools",
        ),
        pytest.param(
            FALLBACK | {"returnToSpot": False},
            status(on("sure", cause="NodeLost"), preemptions=1, preemptions_before=1),
            {},
            "sure",
            id="it stays, where it is not to return",
        ),
        pytest.param(
            FALLBACK,
            status(on("sure", cause="NodeLost"), preemptions=1, preemptions_before=1),
            {},
            "cheap",
            id="it need not stay",
        ),
        pytest.param(
            FALLBACK,
            status(on("sure", cause="NodeLost"), preemptions=1, preemptions_before=1),
            {"cheap": DRY},
            "sure",
            id="but where else",
        ),
        pytest.param(
            FALLBACK,
            status(on("sure", cause="Moved", reason=RETURNING), nowhere("cheap", 2), preemptions_before=0),
            {"cheap": DRY_LONG_AGO},
            "sure",
            id="a return that failed",
        ),
        pytest.param(
            FALLBACK,
            status(on("sure", cause="Moved", reason="SpecChanged"), preemptions_before=0),
            {},
            "sure",
            id="ended for another reason",
        ),
        pytest.param(
            FALLBACK | {"onDemand": {"pools": ["sure"], "afterPreemptions": 100}},
            status(*(on("cheap", n, durable_step=None) for n in range(1, 7)), preemptions=6),
            {},
            "sure",
            id="taken again and again, with nothing saved",
        ),
        pytest.param(
            BOTH, status(*(on("dear", n, durable_step=None) for n in range(1, 6))), {}, "dear", id="five times in vain"
        ),
        pytest.param(
            BOTH,
            status(*(on("dear", n, durable_step=None) for n in range(1, 7))),
            {},
            "cheap",
            id="six times: elsewhere",
        ),
        pytest.param(BOTH, status(on("cheap", cause="OutOfMemory")), {}, "dear", id="more memory, in the order anyway"),
        pytest.param({}, status(on("cheap", cause="OutOfMemory")), {}, "dear", id="more memory before a better price"),
    ],
)
def test_what_the_past_says(placement, history, fleet, want):
    placed = at(placement, status=history, fleet=fleet)
    assert isinstance(placed, Placed), placed
    assert placed.name == want


@pytest.mark.parametrize(
    ("hours", "want"),
    [
        pytest.param(3.0, "cheap", id="time enough"),
        pytest.param(1.4, "cheap", id="just enough"),
        pytest.param(1.1, "sure", id="an hour of work, and too little for what may befall it"),
        pytest.param(0.5, "sure", id="too late, but no later than it must be"),
    ],
)
def test_what_the_deadline_needs(hours, want):
    limits = {"deadline": stamp(NOW + hours * 3600)}
    placement = {"pools": ["cheap"], "onDemand": {"pools": ["sure"]}}
    history = status(seconds_per_step="7.2", preemptions=50)
    given = seen(spec=spec(placement=placement, limits=limits), pools=POOLS, status=history)
    placed = choose(given, settle(given).status)
    assert placed.name == want
    if want == "cheap":
        assert placed.fallback.at == pytest.approx(NOW + hours * 3600 - 3600 * 1.05 - 3 * 360, abs=1)
        assert placed.fallback.wait_why == "limits.deadline"
    never = {"onDemand": {"pools": ["sure"], "whenDeadlineNeedsIt": False, "afterPreemptions": 99}}
    given = seen(spec=spec(placement=placement | never, limits=limits), pools=POOLS, status=history)
    assert choose(given, settle(given).status).name == "cheap", "unless the user says otherwise"


@pytest.mark.parametrize(
    ("given", "want"),
    [
        pytest.param({}, 40 * 3600 / 40, id="before the first attempt: a fortieth of the time that there is"),
        pytest.param({"begun": NOW - 600}, (40 * 3600 + 600) / 40 - 600, id="ten minutes are gone"),
        pytest.param({"begun": NOW - 4000}, None, id="all of it is gone"),
        pytest.param(
            {"begun": NOW - 4000, "queued": NOW - 100}, (40 * 3600 + 100) / 40 - 100, id="a queue's do not count"
        ),
        pytest.param({"begun": NOW - 4000, "suspended": 3900}, (40 * 3600 + 100) / 40 - 100, id="nor its user's"),
        pytest.param({"begun": NOW - 4000, "pace": "0.01"}, 40 * 3600 - 5 * 1.05 - 3 * 360, id="a step was measured"),
    ],
)
def test_how_long_spot_is_looked_for_before_a_step_has_been_measured(given, want):
    placement = {"pools": ["cheap"], "onDemand": {"pools": ["sure"]}}
    begun = given.get("begun")
    tried = [
        on("cheap", created=stamp(begun or NOW), queued_until=stamp(given["queued"]) if "queued" in given else None)
    ]
    times = [TimeStatus(activity="Suspended", seconds=given.get("suspended", 0))]
    history = status(*(tried if begun else []), seconds_per_step=given.get("pace"), times=times)
    limits = {"deadline": stamp(NOW + 40 * 3600)}
    observed = seen(spec=spec(placement=placement, limits=limits), pools=POOLS, status=history)
    falls = choose(observed, history).fallback
    assert falls.wanted is (want is None)
    if want is not None:
        assert falls.at == pytest.approx(NOW + want, abs=1)
    else:
        assert "no step has been measured" in falls.why


def test_a_dry_pool_that_is_due_for_a_try_is_not_gone_back_to_when_the_deadline_has_wanted_another():
    """Left for on-demand capacity a moment ago, it looked open again, and the run went to and fro between the two."""
    limits = {"deadline": stamp(NOW + 4800)}
    placement = {"pools": ["cheap"], "onDemand": {"pools": ["sure"]}}
    history = status(seconds_per_step="7.2")
    for known in (DRY, DRY_LONG_AGO):
        long_gone = {"cheap": replace(known, placed=NOW - 9000, taken=NOW - 7200)}
        given = seen(spec=spec(placement=placement, limits=limits), pools=POOLS, status=history, fleet=long_gone)
        placed = choose(given, settle(given).status)
        assert placed.name == "sure", placed
        assert placed.fallback.wanted


def test_what_waiting_is_worth_hangs_on_the_prices_of_pools_that_the_run_may_use():
    """A default pool beside the named ones, however cheap, makes nobody wait longer."""
    placement = {"pools": ["dear"], "onDemand": {"pools": ["sure"]}}
    limits = {"deadline": stamp(NOW + 4 * 3600)}
    gone = {"dear": replace(DRY, placed=NOW - 3600, taken=NOW - 900)}

    def wait(pools: Any) -> float:
        history = status(seconds_per_step="7.2")
        given = seen(spec=spec(placement=placement, limits=limits), pools=pools, status=history, fleet=gone)
        placed = choose(given, settle(given).status)
        return placed.fallback.at or 0.0

    alone = {name: POOLS[name] for name in ("dear", "sure")}
    assert wait(POOLS) == wait(alone)
    assert wait(alone | {"dear": pool("0.2")}) != wait(alone), "its own price does count"


def test_until_when_spot_is_waited_for():
    placement = {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}}
    history = status(activity="PoolDry", activity_since=stamp(NOW - 300))
    placed = at(placement, status=history, fleet={"cheap": DRY})
    assert placed.fallback.at == NOW + 900


@pytest.mark.parametrize(
    ("placement", "pools", "reason", "words"),
    [
        ({"pools": ["nope"]}, POOLS, "UnknownPool", "'nope'"),
        ({"onDemand": {"pools": ["gone"]}}, POOLS, "UnknownPool", "'gone'"),
        ({"onDemand": {"pools": ["cheap"]}}, POOLS, "NotOnDemand", "capacityType is Spot"),
        ({}, {"hidden": POOLS["hidden"]}, "NoDefaultPool", "hidden"),
        ({"pools": ["theirs"]}, {"theirs": pool(namespaces=["theirs"])}, "PoolNotAllowed", "allowedNamespaces"),
        ({"onDemand": {"pools": ["theirs"]}}, POOLS | {"theirs": pool(namespaces=["b"])}, "PoolNotAllowed", "'theirs'"),
        ({}, {"theirs": pool(namespaces=["theirs"])}, "NoDefaultPool", "that this namespace may use"),
    ],
)
def test_refused(placement, pools, reason, words):
    refused = at(placement, pools=pools)
    assert isinstance(refused, Unplaceable)
    assert refused.reason == reason
    assert words in refused.message


@pytest.mark.parametrize(
    ("placement", "gone", "want"),
    [
        ({"pools": ["cheap", "gone"]}, {}, "cheap"),
        ({"pools": ["cheap"], "onDemand": {"pools": ["gone"]}}, {}, "cheap"),
        ({"pools": ["gone"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}}, {}, "; until"),
        (
            {"pools": ["gone"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}},
            {"activity": "WaitingForSpot", "activity_since": stamp(NOW - 1300)},
            "sure",
        ),
        ({"pools": ["gone"], "onDemand": {"pools": ["sure"], "afterPreemptions": 5}}, {}, "'gone'"),
        ({"pools": ["gone"]}, {}, "'gone'"),
    ],
)
def test_a_run_that_has_begun_goes_on_with_the_pools_that_are_left(placement, gone, want):
    begun = status(attempt(1, pool="gone", cause="NoCapacity", reason="PoolGone", ended=stamp(NOW - 60)), **gone)
    choice = at(placement, status=begun)
    if isinstance(choice, Placed):
        assert choice.name == want
        assert "'gone'" in choice.passed_over
    else:
        assert want in choice.message
        assert "'gone'" in choice.message


def test_allowed_pools_are_used_and_others_are_not():
    pools = {"theirs": pool("0.1", namespaces=["theirs"]), "ours": pool("0.9", namespaces=["default"])}
    assert at({}, pools=pools).name == "ours"


TIGHT = {"tight": pool("0.1", most=2), "wide": pool("0.9", default=False)}


@pytest.mark.parametrize(
    ("placement", "fleet", "pods", "want"),
    [
        pytest.param({}, {"tight": PoolKnown(live=1)}, (), "tight", id="room"),
        pytest.param({}, {"tight": PoolKnown(live=2)}, (), None, id="full"),
        pytest.param({"pools": ["tight", "wide"]}, {"tight": PoolKnown(live=2)}, (), "wide", id="others first"),
        pytest.param(
            {"pools": ["tight", "wide"]},
            {"tight": PoolKnown(live=2), "wide": DRY},
            (),
            "wide",
            id="a dry one is not full: there, one may come",
        ),
        pytest.param(
            {}, {"tight": PoolKnown(live=2)}, (pod(1, pool="tight"),), "tight", id="its own place stays its own"
        ),
        pytest.param(
            {}, {"tight": PoolKnown(live=2)}, (ended(1, pool="tight"),), None, id="unless its attempt is over"
        ),
    ],
)
def test_room(placement, fleet, pods, want):
    choice = at(placement, pools=TIGHT, fleet=fleet, pods=pods, status=status(*(attempt(one.attempt) for one in pods)))
    if want is None:
        assert isinstance(choice, Waiting)
        assert choice.reason == "PoolFull"
        assert "tight (2)" in choice.message
    else:
        assert choice.name == want


def test_an_attempt_that_waits_is_looked_at_when_on_demand_capacity_is_due():
    placement = {"pools": ["cheap"], "onDemand": {"pools": ["sure"], "afterPending": "20m"}}
    waiting = pod(
        1, pool="cheap", phase="Pending", node=None, started=None, created=NOW - 60, unschedulable="none fits"
    )
    waiting = replace(waiting, events_read=NOW + 1000)  # not what this is about
    entry = attempt(1, pool="cheap", created=stamp(NOW - 60), started=None)
    history = status(entry, activity="NoNodeFits", activity_since=stamp(NOW - 1100))
    decision = decide(seen(spec=spec(placement=placement), pools=POOLS, status=history, pods=(waiting,)))
    assert decision.look_again == pytest.approx(100, abs=1), "not only after the pool's provisioningTimeout"
