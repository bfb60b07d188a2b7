"""What the demo says of a preemption is what the statuses show."""

from __future__ import annotations

from typing import Any

import pytest

from examples.demo.account import Interruption, Moment, in_words, interruption, worth_disturbing

RUNNING = {"number": 1, "fromStep": 0, "toStep": 30, "durableStep": 20}
NOTICED = RUNNING | {"toStep": 34, "durableStep": 34, "cause": "Preempted"}
KILLED = RUNNING | {"toStep": 34, "cause": "NodeLost"}


def seen(time: float, *attempts: dict[str, Any]) -> Moment:
    return Moment(time, {"attempts": list(attempts)})


def second(**fields: Any) -> dict[str, Any]:
    return {"number": 2, **fields}


def test_with_notice_nothing_is_lost() -> None:
    moments = [
        seen(99.0, RUNNING),
        seen(101.0, NOTICED),
        seen(102.5, NOTICED, second()),
        seen(108.0, NOTICED, second(fromStep=34, toStep=34)),
        seen(110.0, NOTICED, second(fromStep=34, toStep=35)),
        seen(111.0, NOTICED, second(fromStep=34, toStep=40)),
    ]
    told = interruption(moments, 1, 100.0)
    assert told is not None
    assert (told.lost, told.lost_steps, told.cause) == (0, "nothing", "Preempted")
    assert (told.reached, told.resumed) == (34, 34)
    assert told.to_pod == pytest.approx(2.5)
    assert told.to_training == pytest.approx(7.5)
    assert told.gap == pytest.approx(10.0)


def test_without_notice_the_steps_since_the_checkpoint_are_lost() -> None:
    moments = [seen(1.0, KILLED, second()), seen(9.0, KILLED, second(fromStep=20, toStep=21))]
    told = interruption(moments, 1, 0.0)
    assert told is not None
    assert (told.lost, told.lost_steps) == (14, "14 steps")


def test_the_last_words_of_an_attempt_count_also_where_they_come_late() -> None:
    """A step may be told of after the fault, and the end of a lost attempt is written after the next one's start."""
    moments = [
        seen(1.0, RUNNING, second()),
        seen(2.0, RUNNING | {"toStep": 35}, second(fromStep=34, toStep=36)),
        seen(3.0, NOTICED | {"toStep": 35}, second(fromStep=34, toStep=50)),
    ]
    assert interruption(moments[:2], 1, 0.0) is None
    told = interruption(moments, 1, 0.0)
    assert told is not None
    assert (told.reached, told.lost, told.lost_steps) == (35, 1, "1 step")
    assert told.gap == pytest.approx(2.0)


@pytest.mark.parametrize(
    "moments",
    [
        [],
        [seen(1.0, NOTICED)],
        [seen(1.0, NOTICED, second())],
        [seen(1.0, NOTICED, second(fromStep=34))],
        [seen(1.0, NOTICED, second(fromStep=34, toStep=34))],
    ],
    ids=["nothing seen", "no next attempt", "no start", "nothing told", "no new step"],
)
def test_it_is_open_until_the_next_attempt_trains(moments: list[Moment]) -> None:
    assert interruption(moments, 1, 0.0) is None


@pytest.mark.parametrize(
    ("attempt", "worth"),
    [
        ({}, False),
        ({"fromStep": 0, "toStep": 0}, False),
        ({"fromStep": 0, "toStep": 39}, False),
        ({"fromStep": 0, "toStep": 41, "durableStep": 40}, False),
        ({"fromStep": 0, "toStep": 53, "durableStep": 40}, True),
        ({"fromStep": 0, "toStep": 53, "durableStep": 40, "cause": "Error"}, False),
        ({"fromStep": 54, "toStep": 70, "durableStep": 54}, False),
        ({"fromStep": 54, "toStep": 93, "durableStep": 80}, True),
        ({"fromStep": 0, "toStep": 150}, True),
    ],
    ids=[
        "not started", "no step yet", "no checkpoint yet", "just after one", "some way past one", "over already",
        "only the checkpoint that it began with", "past one of its own", "now or never",
    ],
)  # fmt: skip
def test_worth_disturbing(attempt: dict[str, Any], worth: bool) -> None:
    status = {"attempts": [{"number": 1, **attempt}]}
    assert worth_disturbing(status, 1, every=40, latest=150) is worth
    assert worth_disturbing(status, 2, every=40, latest=150) is False


@pytest.mark.parametrize(
    ("noticed", "reached", "resumed", "words"),
    [
        (True, 54, 54, "Lost: nothing. Attempt 1 saved step 54 within the notice, and attempt 2 goes on from it."),
        (True, 55, 54, "Lost: 1 step. Attempt 1 saved step 54 within the notice, with step 55 under way"),
        (True, 58, 54, "Lost: 4 steps. Attempt 1 told of step 58, and attempt 2 goes on from the checkpoint at 54"),
        (False, 98, 80, "Lost: 18 steps. Attempt 1 told of step 98, and attempt 2 goes on from the checkpoint at 80"),
        (False, 80, 80, "Lost: nothing. Attempt 1 told of step 80, and attempt 2 goes on"),
    ],
)
def test_in_words(noticed: bool, reached: int, resumed: int, words: str) -> None:
    told = Interruption(attempt=1, cause="Preempted", reached=reached, resumed=resumed, to_pod=1.0, to_training=12.26)
    said = in_words(told, noticed=noticed, every=40)
    assert said.startswith(words)
    assert said.endswith(
        "Gap: 13.3 s without training, of which 1.0 s until the pod of attempt 2 was there and 12.3 s until its first "
        "step."
    )
