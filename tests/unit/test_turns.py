"""Turns: so many at once, urgent ones first, the rest of a pass behind them, and nobody waits for ever."""

from __future__ import annotations

import asyncio

from lorafinetune.turns import FAIR, Rank, Turn, Turns


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_there_are_places() -> None:
    turns = Turns(2)
    first, _ = await turns.take(Rank.ORDINARY), await turns.take(Rank.ORDINARY)
    third = asyncio.create_task(turns.take(Rank.URGENT))
    await settle()
    assert not third.done()
    first.end()
    await settle()
    assert third.done()


async def test_urgent_goes_before_rest_goes_before_ordinary() -> None:
    turns, order = Turns(1), []
    held = await turns.take(Rank.ORDINARY)

    async def work(rank: Rank) -> None:
        turn = await turns.take(rank)
        order.append(rank)
        turn.end()

    tasks = [asyncio.create_task(work(rank)) for rank in (Rank.ORDINARY, Rank.REST, Rank.URGENT, Rank.URGENT)]
    await settle()
    held.end()
    await asyncio.gather(*tasks)
    assert order == [Rank.URGENT, Rank.URGENT, Rank.REST, Rank.ORDINARY]


async def test_creates_come_before_statuses() -> None:
    names, order = list(range(40)), []
    turns = Turns(2, lambda: bool(names))

    async def work(turn: Turn, name: int) -> None:
        order.append(f"create {name}")
        await settle()
        await turn.give_way()
        order.append(f"status {name}")
        await settle()
        turn.end()

    async with asyncio.TaskGroup() as passes:
        while names:
            name = names.pop()
            passes.create_task(work(await turns.take(Rank.URGENT), name))
    early = [one.split()[0] for one in order[:40]].count("status")
    assert early <= 2, "no more than there are places: those that had given way already when the last came"
    assert len(order) == 80


async def test_nobody_gives_way_to_nobody() -> None:
    turns = Turns(1)
    turn = await turns.take(Rank.URGENT)
    waiting = asyncio.create_task(turns.take(Rank.ORDINARY))
    await settle()
    await turn.give_way()
    assert not waiting.done(), "only who is urgent is let by"
    waiting.cancel()


async def test_a_storm_of_urgent_ones_does_not_starve_the_others() -> None:
    turns = Turns(1)
    held = await turns.take(Rank.URGENT)
    patient = asyncio.create_task(turns.take(Rank.ORDINARY))
    await settle()
    for _ in range(FAIR + 1):
        if patient.done():
            break
        again = asyncio.create_task(turns.take(Rank.URGENT))
        await settle()
        held.end()
        await settle()
        if again.done():
            held = again.result()
        else:
            again.cancel()
    assert patient.done()


async def test_whoever_is_cancelled_leaves_no_place_behind_and_takes_none_with_it() -> None:
    turns = Turns(1)
    held = await turns.take(Rank.ORDINARY)
    waits, given = (asyncio.create_task(turns.take(Rank.URGENT)) for _ in range(2))
    await settle()
    waits.cancel()
    await settle()
    held.end()
    given.cancel()  # in the moment in which it was given the place
    await settle()
    assert (await asyncio.wait_for(turns.take(Rank.ORDINARY), 1)) is not None


async def test_one_that_is_cancelled_while_giving_way_gives_its_place_once() -> None:
    turns = Turns(1)
    giving = await turns.take(Rank.ORDINARY)
    urgent = asyncio.create_task(turns.take(Rank.URGENT))
    await settle()
    stepping = asyncio.create_task(giving.give_way())
    await settle()
    stepping.cancel()
    await settle()
    giving.end()
    blocked = asyncio.create_task(turns.take(Rank.URGENT))
    await settle()
    assert not blocked.done(), "the urgent one still has the only place"
    urgent.result().end()
    await settle()
    assert blocked.done()
