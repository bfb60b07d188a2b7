"""The fold of events: whatever order and however often they arrive, nothing goes backward."""

from hypothesis import given
from hypothesis import strategies as st

from lorafinetune.contract.event import Event, EventType, Phase
from lorafinetune.engine.progress import Progress, fold


def progress_event(sequence: int, step: int, attempt: int = 1, **more) -> Event:
    return Event(type=EventType.PROGRESS, run_uid="u", attempt=attempt, sequence=sequence, step=step, **more)


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


def test_what_is_not_said_again_stays_known():
    told = fold(Progress(1), progress_event(1, 1, total_steps=620, images_per_second=2.5, mfu=0.3, memory_bytes=9), 1.0)
    known = fold(told, progress_event(2, 2, loss=0.1), now=2.0)
    assert (known.total_steps, known.images_per_second, known.mfu, known.memory_bytes) == (620, 2.5, 0.3, 9)


def test_a_phase_has_a_beginning_and_counts_of_its_own():
    made = fold(Progress(1), progress_event(1, 0, phase=Phase.GENERATING, done=0, total=100), now=5.0)
    made = fold(made, progress_event(2, 0, phase=Phase.GENERATING, done=12), now=9.0)
    assert (made.phase_since, made.done, made.total) == (5.0, 12, 100)
    after = fold(made, progress_event(3, 0, phase=Phase.CONDITIONING), now=11.0)
    assert (after.phase_since, after.done, after.total) == (11.0, None, None)
