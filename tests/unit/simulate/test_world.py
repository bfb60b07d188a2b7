"""The world around the engine: what befalls a single run, to the second."""

from __future__ import annotations

import pytest

from lorafinetune.engine.decision import CreatePod
from lorafinetune.simulate import account
from lorafinetune.simulate.places import Platform
from lorafinetune.simulate.policies import POLICIES
from lorafinetune.simulate.world import START, WorldError
from tests.unit.simulate.given import lived, scenario, traces

ALWAYS = [10_000]


def test_an_undisturbed_run_takes_what_it_takes() -> None:
    world = lived(scenario(traces(zone=ALWAYS), every_steps=600), "spot-one")
    life = world.lives[0]
    assert life.succeeded
    saves = 3600 // 600 - 1
    assert life.ended == pytest.approx(START + 120 + 60 + 3600 + saves * 1.0 + 10)
    assert life.account.cost == pytest.approx((60 + 3600 + saves + 10) / 3600)
    assert life.account.lost == 0


def test_a_notice_loses_no_step_and_none_loses_a_checkpoint_interval_at_most() -> None:
    # Capacity for 40 minutes, none for 10, and then for good.
    cut = traces(zone=[40, 10, 1000])
    told = lived(scenario(cut, every_steps=600), "spot-one").lives[0].account
    assert told.ended_by == {account.TAKEN: 1, account.FINISHED: 1}
    assert told.lost < 1.0
    silent = lived(scenario(cut, every_steps=600, platform=Platform(120.0, 0.0, None)), "spot-one").lives[0].account
    assert silent.ended_by == {account.TAKEN_SILENTLY: 1, account.FINISHED: 1}
    # It trained from 180 s on, was taken at 2400 s; three checkpoints had halted it, the last was of step 1800.
    assert silent.lost == pytest.approx(2400 - 180 - 3 - 1800)


def test_a_notice_that_is_too_short_for_a_save_is_worth_nothing() -> None:
    short = scenario(traces(zone=[40, 10, 1000]), every_steps=600, platform=Platform(120.0, 5.0, None))
    spent = lived(short, "spot-one").lives[0].account
    assert spent.lost == pytest.approx(2400 - 180 - 3 - 1800)


def test_a_zone_that_goes_while_a_node_is_made_gives_none() -> None:
    world = lived(scenario(traces(zone=[1, 30, 1000])), "spot-one")
    assert world.lives[0].ended is not None
    assert world.lives[0].ended > START + 31 * 60 + 3600
    assert world.lives[0].account.ended_by == {account.FINISHED: 1}


def test_a_dry_pool_is_left_for_one_that_has_nodes() -> None:
    world = lived(scenario(traces(dry=[0, 5000], wet=ALWAYS)), "spot-any")
    life = world.lives[0]
    assert life.succeeded
    assert [one.pool for one in life.status.attempts] == ["dry", "wet"]
    # The first attempt waited for its pool's provisioningTimeout of ten minutes, and cost nothing.
    assert life.ended == pytest.approx(START + 600 + 120 + life.account.seconds, abs=5)


def test_the_platforms_word_that_there_is_no_capacity_saves_the_wait() -> None:
    told = scenario(traces(dry=[0, 5000], wet=ALWAYS), platform=Platform(120.0, 30.0, 20.0))
    life = lived(told, "spot-any").lives[0]
    assert life.ended == pytest.approx(START + 20 + 120 + life.account.seconds, abs=5)


def test_as_many_nodes_as_there_are_machines() -> None:
    world = lived(scenario(traces(zone=ALWAYS), runs=3, machines=1, arrival="together"), "spot-one")
    ended = sorted(life.ended or 0.0 for life in world.lives)
    assert all(life.succeeded for life in world.lives)
    assert ended[1] - ended[0] > 3600
    assert ended[2] - ended[1] > 3600


def test_runs_together_are_told_apart_from_runs_that_wait_for_room() -> None:
    crowd = scenario(traces(zone=ALWAYS), runs=3, arrival="together")
    small = crowd.pools["zone"].model_copy(update={"max_concurrent_attempts": 1})
    world = lived(scenario(traces(zone=ALWAYS), runs=3, arrival="together", pools={"zone": small}), "spot-one")
    assert all(life.succeeded for life in world.lives)
    waited = sorted(sum(one.seconds for one in life.status.times if one.activity == "PoolFull") for life in world.lives)
    assert waited[0] == 0
    assert waited[1] > 3600
    assert waited[2] > 7200


def test_a_second_live_attempt_is_refused_by_the_world() -> None:
    given = scenario(traces(zone=ALWAYS))
    world = given.world(POLICIES["spot-one"])
    while world.now < START + 1000:
        world.agenda.step(START + 1000)
    life = world.lives[0]
    world._do(life, CreatePod(2, "zone", given.pools["zone"], None, None))
    with pytest.raises(WorldError, match="run-001-2 starts while run-001-1 is alive"):
        world._arrive(life, life.attempts[2])
