"""The fold of events: whatever order and however often they arrive, nothing goes backward."""

from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.contract.event import Event, EventType
from lorafinetune.engine.progress import Progress, fold


def progress_event(sequence: int, step: int, attempt: int = 1) -> Event:
    return Event(type=EventType.PROGRESS, run_uid="u", attempt=attempt, sequence=sequence, step=step)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100), st.integers(1, 3)), max_size=60))
def test_step_and_sequence_never_go_down(rows):
    progress = Progress(2)
    for sequence, step, attempt in rows:
        folded = fold(progress, progress_event(sequence, step, attempt), now=1.0)
        assert folded.step >= progress.step
        assert folded.sequence >= progress.sequence
        assert attempt == 2 or folded == progress
        progress = folded


@given(st.integers(1, 50), st.integers(0, 100))
def test_a_repeat_changes_nothing(sequence, step):
    once = fold(Progress(1), progress_event(sequence, step), now=1.0)
    assert fold(once, progress_event(sequence, step), now=2.0) == once


def test_started_tells_where_it_resumed():
    event = Event(type=EventType.STARTED, run_uid="u", attempt=1, sequence=1, step=40)
    assert fold(Progress(1), event, now=1.0).resumed_from == 40
