"""Planned moves: off a dry pool, never two at once; and back from on-demand capacity, if that pays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafinetune.contract.event import Phase
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine.decision import CreatePod, DeletePod
from lorafinetune.engine.fleet import Fading, PoolKnown
from lorafinetune.engine.news import fold
from lorafinetune.engine.observation import NodeSeen, Observation
from lorafinetune.engine.pending import asks_for
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.returning import likely
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, pod, pool, seen, spec, status

POOLS = {
    "a": pool("0.3"),
    "b": pool("0.4"),
    "sure": pool("1.2", capacity="OnDemand", default=False),
}
SPOT = {"pools": ["a", "b"]}
ONLY = {"pools": ["a"]}
FALLBACK = {"pools": ["a"], "onDemand": {"pools": ["sure"], "afterPending": "5m"}}
TEN = 10 * 60
SAYS_NO = {"no_scale_up": "pod didn't trigger scale-up: 1 max node group size reached"}


def waiting(age: float = 300.0, *, placement: Any = None, fleet: Any = None, **changes: Any) -> Observation:
    """A run whose first attempt has waited in pool a for *age* seconds."""
    facts = {
        "pool": "a",
        "phase": "Pending",
        "node": None,
        "started": None,
        "created": NOW - age,
        "unschedulable": "0/3 nodes are available",
        "events_read": NOW,
    }
    entry = attempt(1, pool="a", created=stamp(NOW - age), started=None, dry=changes.pop("dry", None))
    history = {"activity": "NoNodeFits", "activity_since": stamp(NOW - age)} | changes.pop("history", {})
    return seen(
        spec=spec(placement=placement or SPOT),
        pools=POOLS,
        status=status(entry, **history),
        pods=(pod(1, **(facts | changes)),),
        fleet=fleet or {},
    )


@pytest.mark.parametrize(
    ("given", "reason", "activity"),
    [
        pytest.param(waiting(5, **SAYS_NO), "Unschedulable", "NoNodeFits", id="too early for any sign"),
        pytest.param(waiting(11), "Unschedulable", "NoNodeFits", id="no sign, within its time"),
        pytest.param(waiting(11, **SAYS_NO), "PoolDry", "PoolDry", id="the autoscaler says no"),
        pytest.param(waiting(11, insufficient_capacity="stockout"), "PoolDry", "PoolDry", id="the cloud says no"),
        pytest.param(waiting(TEN - 1), "Unschedulable", "NoNodeFits", id="a second before its time is up"),
        pytest.param(waiting(TEN), "PoolDry", "PoolDry", id="its time is up"),
        pytest.param(waiting(TEN, scale_up_since=NOW - 60), "ScalingUp", "ScalingUp", id="a node is being made"),
        pytest.param(
            waiting(11, scale_up_since=NOW - 60, **SAYS_NO), "ScalingUp", "ScalingUp", id="which counts for more"
        ),
        pytest.param(waiting(TEN + 60, scale_up_since=NOW - TEN), "PoolDry", "PoolDry", id="and never came"),
        pytest.param(
            waiting(3 * TEN, scale_up_since=NOW - 60), "PoolDry", "PoolDry", id="however often it is made anew"
        ),
        pytest.param(waiting(9 * TEN, gated=True), None, "Queued", id="its queue's time does not count"),
        pytest.param(
            waiting(TEN, history={"activity": "Queued", "activity_since": stamp(NOW - TEN)}),
            "Unschedulable",
            "NoNodeFits",
            id="nor once it has let it go",
        ),
        pytest.param(waiting(9 * TEN, phase="Unknown", node="node-a"), None, None, id="it has a node"),
        pytest.param(waiting(TEN, deleting=True), None, None, id="somebody deletes it"),
    ],
)
def test_a_pool_is_dry_on_positive_signs_or_after_its_time(given, reason, activity):
    decision = decide(given)
    stopped = [one for one in decision.status.attempts if one.stopping == "NoCapacity"]
    if reason == "PoolDry":
        assert stopped, decision.message
        assert decision.reason == reason
        assert "going to b" in decision.message
        assert not any(isinstance(one, DeletePod | CreatePod) for one in decision.actions), "written down first"
    else:
        assert not stopped, decision.message
        if reason is not None:
            assert (decision.reason, decision.status.activity) == (reason, activity)


def test_that_no_node_fits_is_told_once_however_the_schedulers_words_change():
    given = waiting(11)
    told = decide(given)
    assert [one.reason for one in told.announcements if one.warning] == ["Unschedulable"]
    again = decide(replace(hop(given, told, unschedulable="0/4 nodes are available: 1 cordoned"), now=NOW + 30))
    assert "1 cordoned" in (again.status.message or ""), "status has the newest words"
    assert not [one for one in again.announcements if one.warning]
    dry = decide(replace(hop(given, again), now=NOW + TEN, spec=spec(placement=ONLY)))
    assert [one.reason for one in dry.announcements if one.warning] == ["PoolDry"], "another reason is told"


def hop(given: Observation, decision: Any, **changes: Any) -> Observation:
    """The next look, with what was written down and told to the fleet, and the pod changed."""
    pods = tuple(replace(one, **changes) for one in given.pods)
    fleet = fold(given.fleet, given.status, decision.status, given.now)
    return replace(given, status=decision.status, pods=pods, fleet=fleet)


def test_the_next_attempt_is_made_when_the_pod_is_known_to_be_over():
    given = waiting(TEN)
    written = decide(given)
    asked = decide(hop(given, written))
    assert [type(one) for one in asked.actions] == [DeletePod]
    again = decide(hop(given, asked))
    assert not any(isinstance(one, CreatePod) for one in again.actions)
    over = decide(hop(given, again, deleting=True))
    created = [one for one in over.actions if isinstance(one, CreatePod)]
    assert [one.pool for one in created] == ["b"]
    ended = over.status.attempts[0]
    assert (ended.cause, ended.reason) == ("NoCapacity", "PoolDry")
    assert not over.status.preemptions


def test_a_node_that_comes_in_the_last_moment_is_kept():
    given = waiting(TEN)
    written = decide(given)
    came = decide(hop(given, written, node="node-a"))
    assert came.status.attempts[0].stopping is None
    assert came.status.attempts[0].reason is None
    assert not came.actions


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param(replace(waiting(5), pools={"b": POOLS["b"]}), "PoolGone", id="deleted"),
        pytest.param(waiting(5, asks_for="another"), "PoolChanged", id="its selector or tolerations were mended"),
        pytest.param(waiting(5, placement={"pools": ["b"]}), "SpecEdited", id="the user named others"),
    ],
)
def test_nobody_waits_for_what_is_not_wanted_any_more(given, reason):
    stopped = decide(given).status.attempts[-1]
    assert (stopped.stopping, stopped.reason) == ("NoCapacity", reason)


def test_a_wait_that_a_limit_ends_says_so():
    given = replace(waiting(20), spec=spec(placement=SPOT, limits={"deadline": stamp(NOW + 60)}))
    assert f"; spec.limits ends the run at {stamp(NOW + 60)}" in decide(given).message
    assert "spec.limits" not in decide(waiting(20)).message


def test_what_a_pool_asks_for_is_its_nodes_alone():
    same = POOLS["a"].model_copy(update={"price_per_hour": "9", "provisioning_timeout": "1h"})
    assert asks_for(same) == asks_for(POOLS["a"])
    assert asks_for(POOLS["a"].model_copy(update={"node_selector": {"pool": "y"}})) != asks_for(POOLS["a"])
    assert decide(waiting(11, asks_for=asks_for(same))).status.attempts[-1].stopping is None


PRESSED = {"placement": {"pools": ["a"], "onDemand": {"pools": ["sure"]}}, "history": {"seconds_per_step": "8"}}
"""4,000 s of work."""


@pytest.mark.parametrize(
    "where", [{"scale_up_since": NOW - 60}, {"gated": True, "queue": "team"}], ids=["node", "queue"]
)
@pytest.mark.parametrize(("left", "leaves"), [(4500, True), (9000, False)])
def test_a_deadline_waits_for_no_node_that_is_being_made_and_for_no_queue(where, left, leaves):
    given = waiting(100, **where, **PRESSED)
    given = replace(given, spec=spec(placement=PRESSED["placement"], limits={"deadline": stamp(NOW + left)}))
    assert (decide(given).status.attempts[-1].stopping is not None) is leaves


@pytest.mark.parametrize(
    ("read", "leaves"), [(None, False), (NOW - 29, False), (NOW - 5, True), (NOW - 60, True)], ids=str
)
def test_nobody_leaves_for_on_demand_before_it_is_known_that_no_node_is_on_its_way(read, leaves):
    given = waiting(40, placement=FALLBACK, events_read=read, history={"activity_since": stamp(NOW - 300)})
    assert (decide(given).status.attempts[-1].stopping is not None) is leaves


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(waiting(TEN, placement=ONLY), "as a has none", id="there is no other pool"),
        pytest.param(
            waiting(TEN, fleet={"b": PoolKnown(dry=NOW - 60, tries=1)}), "as a has none", id="the other is dry too"
        ),
        pytest.param(
            waiting(TEN, fleet={"b": PoolKnown(dry=NOW - 60, tries=1, placed=NOW - 900)}),
            "as a has none",
            id="likelier as the other may be: a hop from one drought into another gains nothing",
        ),
    ],
)
def test_nobody_leaves_for_nowhere(given, words):
    decision = decide(given)
    assert decision.reason == "PoolDry"
    assert decision.status.attempts[0].stopping is None
    assert decision.status.attempts[0].dry is not None
    assert words in decision.message
    assert not decision.actions
    assert not [one for one in decision.announcements if one.reason == "AttemptNoCapacity"]


def test_it_leaves_for_a_mere_try_when_its_own_pause_is_over_and_for_a_sign_at_once():
    """Two droughts are no reason to run from one to the other; a node that another run got is."""
    given = waiting(TEN, fleet={"a": PoolKnown(waiting=1), "b": PoolKnown(dry=NOW - 500, tries=1)})
    dry = decide(given)
    due = hop(given, dry)
    for later, stops in ((101, False), (599, False), (600, True)):
        decision = decide(replace(due, now=NOW + later))
        assert (decision.status.attempts[0].stopping == "NoCapacity") is stops, later
        assert stops or (decision.look_again or 0) <= 600 - later, "and it is looked at then"
    placed = replace(due, fleet=due.fleet | {"b": PoolKnown(placed=NOW + 100)}, now=NOW + 101)
    assert decide(placed).status.attempts[0].stopping == "NoCapacity"


def test_each_time_in_vain_it_stays_for_longer():
    known = {"a": PoolKnown(waiting=1, dry=NOW - 2000, tries=2), "b": PoolKnown(dry=NOW - 3700, tries=4)}
    given = waiting(TEN, fleet=known)
    due = hop(given, decide(given))
    assert due.fleet["a"].tries == 3
    assert decide(replace(due, now=NOW + 2399)).status.attempts[0].stopping is None
    assert decide(replace(due, now=NOW + 2400)).status.attempts[0].stopping == "NoCapacity"


def test_it_leaves_sooner_for_one_that_has_been_left_alone_for_twice_its_pause():
    known = {"a": PoolKnown(waiting=1, dry=NOW - 2000, tries=2), "b": PoolKnown(dry=NOW - 800, tries=1)}
    given = waiting(TEN, fleet=known)
    due = hop(given, decide(given))
    assert decide(replace(due, now=NOW + 399)).status.attempts[0].stopping is None
    assert decide(replace(due, now=NOW + 400)).status.attempts[0].stopping == "NoCapacity"


@pytest.mark.parametrize(
    ("given", "stops"),
    [
        pytest.param(waiting(299, placement=FALLBACK), False, id="not yet"),
        pytest.param(waiting(300, placement=FALLBACK), True, id="the user's own patience is over"),
        pytest.param(waiting(300, placement=FALLBACK, scale_up_since=NOW - 60), False, id="a node is on its way"),
    ],
)
def test_after_pending(given, stops):
    decision = decide(given)
    assert (decision.status.attempts[0].stopping == "NoCapacity") is stops
    if stops:
        assert "going to sure, on demand after 5m of waiting" in decision.message
        assert decision.status.attempts[0].dry is None, "nobody has said that the pool is dry"
    else:
        assert f"until {stamp(NOW + 1)}, then on demand" in decision.message or "being made" in decision.message


def test_the_wait_for_spot_is_named_with_its_end():
    decision = decide(waiting(TEN, placement=ONLY | {"onDemand": {"pools": ["sure"], "afterPending": "20m"}}))
    assert decision.reason == "WaitingForSpot"
    assert decision.status.activity == "WaitingForSpot"
    assert f"until {stamp(NOW + 600)}, then on demand" in decision.message


def test_nodes_where_the_run_failed_are_avoided_until_there_are_no_others():
    def failed(number: int, node: str, ago: float, **changes: Any) -> Any:
        times = {"ended": stamp(NOW - ago), "cause": "Infrastructure", "reason": "NodePressure"}
        return attempt(number, **({"node": node} | times | changes))

    def avoided(*attempts: Any) -> tuple[str, ...]:
        decision = decide(seen(status=status(*attempts)))
        return next(one.avoid_nodes for one in decision.actions if isinstance(one, CreatePod))

    assert avoided(failed(1, "node-b", 700), failed(2, "node-a", 600)) == ("node-a", "node-b")
    assert avoided(failed(1, "node-a", 3601)) == (), "fades"
    assert avoided(failed(1, "node-a", 600, reason="StorageUnreachable")) == (), "not the node's fault"
    assert avoided(failed(1, "node-a", 600, cause="Preempted")) == ()
    gave_up = attempt(2, started=None, ended=stamp(NOW - 5), cause="NoCapacity", reason="NodesAvoided")
    assert avoided(failed(1, "node-a", 600), gave_up) == ()


def test_an_attempt_that_avoids_nodes_gives_that_up_early():
    given = waiting(120, placement=ONLY, avoids=True)
    assert decide(waiting(119, placement=ONLY, avoids=True)).status.attempts[0].stopping is None
    stopped = decide(given).status.attempts[0]
    assert (stopped.stopping, stopped.reason) == ("NoCapacity", "NodesAvoided")
    assert stopped.dry is None, "the pool may have others"


GOOD = {"a": PoolKnown(placed=NOW - 60)}


def on_demand(*, step: int = 100, saved: int = 100, fleet: Any = None, **changes: Any) -> Observation:
    """A run that trains on demand: 400 steps of 9 s are left, an hour."""
    entry = attempt(1, pool="sure", capacity_type="OnDemand", price_per_hour="1.2", start_seconds=120)
    told = Progress(
        1,
        sequence=9,
        step=step,
        phase=Phase.TRAINING,
        heard=NOW,
        seconds_per_step=changes.pop("pace", 9.0),
        checkpoint=CheckpointEntry(attempt=1, step=saved, manifest_sha256="0" * 64) if saved else None,
    )
    placement = {"pools": ["a"], "onDemand": {"pools": ["sure"]}} | changes.pop("placement", {})
    return seen(
        spec=spec(placement=placement),
        pools=POOLS,
        status=status(entry, **changes.pop("history", {"preemptions": 5, "preemptions_before": 5})),
        pods=(pod(1, pool="sure", capacity_type="OnDemand", price_per_hour="1.2"),),
        nodes={"node-a": NodeSeen("node-a", ready=True)},
        fleet=GOOD if fleet is None else fleet,
        progress=told,
        **changes,
    )


@pytest.mark.parametrize(
    ("given", "moves"),
    [
        pytest.param(on_demand(), True, id="just saved, and another run was placed there"),
        pytest.param(on_demand(placement={"returnToSpot": False}), False, id="not wanted"),
        pytest.param(on_demand(step=110), False, id="not at a checkpoint"),
        pytest.param(on_demand(saved=0), False, id="nothing is saved"),
        pytest.param(on_demand(step=495, saved=495), False, id="so little is left that it does not pay"),
        pytest.param(on_demand(history={"moved": stamp(NOW - 3599)}), False, id="moved within the hour"),
        pytest.param(on_demand(history={"moved": stamp(NOW - 3600)}), True, id="an hour ago"),
        pytest.param(on_demand(fleet={"a": PoolKnown(dry=NOW - 60, tries=1)}), False, id="it is dry"),
        pytest.param(
            on_demand(fleet={"a": PoolKnown(dry=NOW - 700, tries=1)}), False, id="due for a try, but not by a run"
        ),
        pytest.param(on_demand(fleet={"a": PoolKnown(dry=NOW - 1800, tries=1)}), True, id="the drought is old"),
        pytest.param(
            on_demand(fleet={"a": PoolKnown(placed=NOW - 90, taken=NOW - 60, takes=Fading(1, NOW - 60))}),
            False,
            id="it has just taken a node",
        ),
        pytest.param(
            on_demand(fleet={"a": PoolKnown(placed=NOW - 60, taken=NOW - 90, takes=Fading(1, NOW - 90))}),
            True,
            id="and has given one since",
        ),
        pytest.param(on_demand(fleet={}), True, id="nothing is known against it"),
        pytest.param(
            on_demand(fleet={"a": PoolKnown(placed=NOW - 60, held=Fading(1000, NOW), preemptions=Fading(20, NOW))}),
            False,
            id="its nodes live so short that nothing is saved",
        ),
    ],
)
def test_back_to_spot(given, moves):
    decision = decide(given)
    entry = decision.status.attempts[-1]
    assert (entry.stopping == "Moved") is moves, decision.message
    if moves:
        assert entry.reason == "ReturningToSpot"
        assert decision.status.moved == stamp(NOW)
        assert "from sure to a at step 100: saves about $0.8" in decision.message
        assert not decision.actions, "written down first"


def vain(times: int) -> list[Any]:
    """Attempts of a run that went back to spot so often, and found no node: one on demand after the other."""
    found = [attempt(1, pool="a", scheduled=stamp(NOW - 99_000), ended=stamp(NOW - 98_000), cause="Preempted")]
    for number in range(2, 2 * times + 2, 2):
        found.append(attempt(number, pool="sure", capacity_type="OnDemand", cause="Moved", reason="ReturningToSpot"))
        found.append(attempt(number + 1, pool="a", started=None, cause="NoCapacity", reason="PoolDry"))
    return found


@pytest.mark.parametrize(
    ("tried", "hours", "known", "moves"),
    [
        pytest.param(0, 1, {}, True, id="an hour after the last move"),
        pytest.param(1, 1.9, {}, False, id="two after one in vain"),
        pytest.param(1, 2, {}, True, id="but then"),
        pytest.param(9, 2, {}, True, id="and so it goes on"),
        pytest.param(9, 1, GOOD, True, id="or when another run has got a node"),
        pytest.param(9, 0.9, GOOD, False, id="once an hour all the same"),
    ],
)
def test_a_return_in_vain_makes_the_next_one_rarer(tried, hours, known, moves):
    given = on_demand(history={"moved": stamp(NOW - hours * 3600)}, fleet=known)
    before = vain(tried)
    last = given.status.attempts[-1].model_copy(update={"number": len(before) + 1})
    history = given.status.model_copy(update={"attempts": [*before, last], "attempt": last.number})
    progress = replace(given.progress, attempt=last.number)
    given = replace(given, status=history, pods=(replace(given.pods[0], attempt=last.number),), progress=progress)
    assert (decide(given).status.attempts[-1].stopping == "Moved") is moves


@pytest.mark.parametrize(
    ("known", "chance"),
    [
        pytest.param(PoolKnown(), 0.5, id="nobody was there yet"),
        pytest.param(PoolKnown(placed=NOW - 60), 0.8, id="another run was placed there"),
        pytest.param(PoolKnown(placed=NOW - 901), 0.5, id="that was long ago"),
        pytest.param(PoolKnown(placed=NOW - 60, taken=NOW - 30), 0.0, id="and lost its node"),
        pytest.param(PoolKnown(taken=NOW - 1800), 0.25, id="half an hour ago"),
        pytest.param(PoolKnown(taken=NOW - 14_400), 0.52, id="four hours ago"),
        pytest.param(PoolKnown(dry=NOW - 60, tries=1), 0.0, id="it is dry"),
        pytest.param(PoolKnown(dry=NOW - 3600, tries=1), 0.28, id="it was dry an hour ago"),
        pytest.param(PoolKnown(dry=NOW - 3600, tries=9, placed=NOW - 60_000), 0.10, id="and had been for long"),
    ],
)
def test_how_likely_a_pool_has_a_node(known, chance):
    assert likely(known, NOW) == pytest.approx(chance, abs=0.02)


def test_a_return_is_tried_only_if_that_is_likely_to_pay():
    """With a quarter of an hour left, a node that may be there saves less than one that is not would cost."""
    sure, unsure = {"a": PoolKnown(placed=NOW - 60)}, {"a": PoolKnown(dry=NOW - 3600, tries=9, placed=NOW - 60_000)}
    for pace, fleet, moves in ((9.0, sure, True), (9.0, unsure, False), (900.0, unsure, True)):
        decision = decide(on_demand(step=400, saved=400, fleet=fleet, pace=pace))
        assert (decision.status.attempts[-1].stopping == "Moved") is moves, (pace, moves)


@pytest.mark.parametrize(("hours", "moves"), [(4.0, True), (1.35, False)])
def test_back_to_spot_only_with_time_for_the_way_back(hours, moves):
    given = on_demand()
    limits = {"deadline": stamp(NOW + hours * 3600)}
    history = given.status.model_copy(update={"seconds_per_step": "9"})
    given = replace(given, spec=given.spec.model_copy(update={"limits": spec(limits=limits).limits}), status=history)
    assert (decide(given).status.attempts[-1].stopping == "Moved") is moves


def test_a_return_that_finds_no_node_goes_back_on_demand():
    returned = attempt(
        1, pool="sure", capacity_type="OnDemand", cause="Moved", reason="ReturningToSpot", ended=stamp(NOW - TEN)
    )
    tried = attempt(2, pool="a", created=stamp(NOW - TEN), started=None)
    facts = {"pool": "a", "phase": "Pending", "node": None, "started": None, "created": NOW - TEN}
    given = seen(
        spec=spec(placement={"pools": ["a"], "onDemand": {"pools": ["sure"]}}),
        pools=POOLS,
        status=status(returned, tried, preemptions=5, preemptions_before=5, moved=stamp(NOW - TEN)),
        pods=(pod(2, **facts),),
    )
    decision = decide(given)
    assert decision.status.attempts[-1].stopping == "NoCapacity"
    assert "going to sure, on demand for spot capacity was tried" in decision.message
    over = decide(replace(given, status=decision.status, pods=(pod(2, **facts, deleting=True),)))
    assert [one.pool for one in over.actions if isinstance(one, CreatePod)] == ["sure"]
