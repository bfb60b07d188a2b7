"""The queue's two lines: what is urgent goes first, keys are never lost, never doubled, never taken by two."""

from __future__ import annotations

import asyncio

import pytest

from lorafinetune.queue import WorkQueue


async def take(queue: WorkQueue, urgent: bool) -> str | None:
    """Return the key that is due in one line; None if none is."""
    try:
        async with asyncio.timeout(0.01):
            return (await queue.take(urgent=urgent))[0]
    except TimeoutError:
        return None


async def test_each_line_gives_its_own_keys() -> None:
    queue = WorkQueue(lambda: 100.0)
    queue.add("told")
    queue.add("ended", urgent=True)
    assert await take(queue, True) == "ended"
    assert await take(queue, True) is None
    assert await take(queue, False) == "told"
    assert len(queue) == 0


@pytest.mark.parametrize("after", [0.0, 30.0])
async def test_a_key_that_turns_urgent_changes_its_line(after: float) -> None:
    queue = WorkQueue(lambda: 100.0)
    queue.add("run", after)
    queue.add("run", urgent=True)
    assert await take(queue, False) is None
    assert await take(queue, True) == "run"
    assert await take(queue, True) is None
    queue.done("run")
    assert await take(queue, False) is None, "it stood in the queue once"


async def test_urgent_news_of_a_key_is_not_lost_to_the_clock() -> None:
    queue = WorkQueue(lambda: 100.0)
    queue.add("run", urgent=True)
    queue.add("run", 30.0)
    queue.add("run")
    assert await take(queue, True) == "run"


async def test_what_comes_while_a_key_is_worked_on_waits_in_the_line_where_it_belongs() -> None:
    queue = WorkQueue(lambda: 100.0)
    queue.add("run")
    assert await take(queue, False) == "run"
    queue.add("run", urgent=True)
    assert await take(queue, True) is None, "one worker at a time"
    queue.done("run")
    assert await take(queue, True) == "run"
    queue.add("run")
    queue.done("run")
    assert await take(queue, True) is None, "it is not urgent by what came before"
    assert await take(queue, False) == "run"


async def test_a_key_is_due_at_its_time_and_says_by_how_much_it_was_late() -> None:
    now = 100.0
    queue = WorkQueue(lambda: now)
    queue.add("run", 5.0)
    assert await take(queue, False) is None
    now = 107.0
    assert await queue.take(urgent=False) == ("run", 2.0)


async def test_waiting_for_a_key_can_be_cancelled_at_any_moment() -> None:
    for pauses in range(4):
        queue = WorkQueue(lambda: 100.0)
        taking = asyncio.create_task(queue.take(urgent=False))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        queue.add("run", 60.0)  # wakes it, and it goes to sleep again
        for _ in range(pauses):
            await asyncio.sleep(0)
        taking.cancel()
        done, _ = await asyncio.wait([taking], timeout=5)
        assert done, f"it was swallowed after {pauses} steps"
        assert taking.cancelled()


async def test_among_urgent_keys_the_order_goes_first_and_then_who_waits_longest() -> None:
    now = 100.0
    queue = WorkQueue(lambda: now)
    for key, order in (("new-2", "2"), ("new-1", "1"), ("taken", "")):
        queue.add(key, urgent=True, order=order)
        now += 1.0
    queue.add("new-1", 5.0)  # a look that the clock asks for later changes nothing
    assert await take(queue, True) == "taken"
    assert await take(queue, True) == "new-1"
    queue.add("new-1", urgent=True, order="1")
    queue.done("new-1")
    assert await take(queue, True) == "new-1", "what has begun goes on before the next begins"
    assert await take(queue, True) == "new-2"


async def test_what_is_not_due_presses_nobody_whatever_its_order() -> None:
    now = 100.0
    queue = WorkQueue(lambda: now)
    queue.add("later", 5.0, urgent=True)
    assert not queue.presses()
    queue.add("new", urgent=True, order="1")
    assert await take(queue, True) == "new"
    assert not queue.presses()
    now += 5.0
    assert queue.presses()
    assert await take(queue, True) == "later"
