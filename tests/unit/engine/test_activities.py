"""Every second of a run belongs to one activity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.engine.activities import Activity, activity, clocked, seconds_of
from lorafinetune.engine.times import instant
from tests.unit.engine.given import NOW


@pytest.mark.parametrize(
    ("phase", "reason", "wanted"),
    [
        ("Pending", "UnknownPool", Activity.MISCONFIGURED),
        ("Pending", "AccessDenied", Activity.MISCONFIGURED),
        ("Pending", "StorageUnreachable", Activity.CHECKING_STORAGE),
        ("Pending", "CreateRefused", Activity.QUOTA),
        ("Starting", "Unschedulable", Activity.NO_NODE_FITS),
        ("Starting", "ImagePullBackOff", Activity.IMAGE),
        ("Starting", "CreateContainerConfigError", Activity.MISCONFIGURED),
        ("Starting", "Conditioning", Activity.PREPARING),
        ("Running", "Training", Activity.TRAINING),
        ("Running", "NodeSilent", Activity.UNCLEAR),
        ("Suspended", "Suspending", Activity.SAVING),
        ("Suspended", "Suspended", Activity.SUSPENDED),
        ("Deleting", "Stopping", Activity.DELETING),
        ("Failed", "NaNLoss", Activity.FINISHED),
        ("Succeeded", "ArtifactVerified", Activity.FINISHED),
    ],
)
def test_what_a_reason_is_counted_as(phase: str, reason: str, wanted: Activity) -> None:
    assert activity(phase, reason) is wanted


def test_the_first_word_of_a_trainer_on_a_paid_node_is_no_intake() -> None:
    assert activity("Starting", "Starting") is Activity.ACCEPTING
    assert activity("Starting", "Starting", holds_a_node=True) is Activity.PREPARING


@given(
    created=st.integers(0, 100),
    stretches=st.lists(st.tuples(st.floats(0, 500), st.sampled_from(list(Activity))), min_size=1, max_size=40),
)
def test_totals_and_the_present_stretch_add_up_to_the_life_of_the_run(
    created: int, stretches: list[tuple[float, Activity]]
) -> None:
    status, now = LoRAFineTuneStatus(), NOW + created
    for seconds, busy_with in stretches:
        now += seconds
        before = status
        status = status.model_copy(update=clocked(status, busy_with, created=NOW, now=now))
        assert status.activity == busy_with
        if before.activity == busy_with:
            assert status == before, "what goes on writes nothing"
    assert status.activity_since is not None
    assert sum(one.seconds for one in status.times) == instant(status.activity_since) - NOW
    assert sum(seconds_of(status, one, now) for one in Activity) == pytest.approx(now - NOW)
