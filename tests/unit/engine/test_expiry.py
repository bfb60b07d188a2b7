"""Runs that are deleted some time after their end."""

from __future__ import annotations

from typing import Any

import pytest

from lorafinetune.api.status import Condition, ConditionStatus, LoRAFineTuneStatus
from lorafinetune.engine.conditions import ConditionType
from lorafinetune.engine.decision import DeleteRun
from lorafinetune.engine.rules import decide
from lorafinetune.engine.times import stamp
from tests.unit.engine.given import NOW, attempt, pod, seen, spec, status


def over(ago: float, *, succeeded: bool = True, pruned: bool = True) -> LoRAFineTuneStatus:
    value = ConditionStatus.TRUE if succeeded else ConditionStatus.FALSE
    said = Condition(
        type=ConditionType.SUCCEEDED, status=value, reason="X", message="", last_transition_time=stamp(NOW - ago)
    )
    return status(
        attempt(cause="Finished", ended=stamp(NOW - ago)),
        completion_time=stamp(NOW - ago),
        conditions=[said],
        message="the LoRA is at s3://loras/a/x",
        pruned=pruned or None,
    )


HOUR = spec(ttlSecondsAfterFinished=3600)


@pytest.mark.parametrize(
    ("name", "given", "deleted"),
    [
        ("its time is over", {"spec": HOUR, "status": over(3601)}, True),
        ("a failed run's too", {"spec": HOUR, "status": over(3601, succeeded=False, pruned=False)}, True),
        ("at once, if asked so", {"spec": spec(ttlSecondsAfterFinished=0), "status": over(1)}, True),
        ("not yet", {"spec": HOUR, "status": over(3500)}, False),
        ("its storage is still being pruned", {"spec": HOUR, "status": over(9999, pruned=False)}, False),
        ("nobody asked", {"status": over(10**7)}, False),
        ("it trains", {"spec": HOUR, "status": status(attempt()), "pods": (pod(),)}, False),
        ("it waits", {"spec": HOUR, "status": status(attempt(cause="Preempted", ended=stamp(NOW - 9999)))}, False),
        ("it is deleted already", {"spec": HOUR, "status": over(9999), "run": {"deleting_since": NOW}}, False),
    ],
)
def test_when(name: str, given: dict[str, Any], deleted: bool) -> None:
    decision = decide(seen(**given))
    assert (DeleteRun() in decision.actions) == deleted, name
    assert ("Expired" in [one.reason for one in decision.announcements]) == deleted


def test_people_are_told_beforehand_and_looked_at_in_time() -> None:
    decision = decide(seen(spec=HOUR, status=over(3500)))
    words = "; this resource is deleted at 2027-01-15T08:01:40Z (spec.ttlSecondsAfterFinished)"
    assert decision.status.message == f"the LoRA is at s3://loras/a/x{words}"
    assert decision.look_again == 100
    again = decide(seen(spec=HOUR, status=decision.status))
    assert again.status == decision.status, "it is written once"
    longer = decide(seen(spec=spec(ttlSecondsAfterFinished=7200), status=decision.status))
    assert (longer.status.message or "").count("this resource is deleted at") == 1
    never = decide(seen(status=decision.status))
    assert never.status.message == "the LoRA is at s3://loras/a/x"


def test_a_wait_of_a_year_is_looked_at_every_hour() -> None:
    assert decide(seen(spec=spec(ttlSecondsAfterFinished=31_536_000), status=over(1))).look_again == 3600
