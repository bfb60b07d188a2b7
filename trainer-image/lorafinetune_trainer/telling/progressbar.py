"""What a terminal shows of an attempt: one bar that moves, and sentences above it for what happened once."""

from __future__ import annotations

from typing import Final

from lorafinetune.contract.event import Event, EventType, Phase, Saved

CLEAR: Final = "\r\x1b[K"
"""Takes the bar away."""
_LAST: Final = frozenset({EventType.FINISHED, EventType.YIELDED, EventType.FAILED})


def bar(event: Event, *, elapsed: float, in_phase: float, columns: int, plain: bool = False) -> str:
    """Return the bar after *event*, narrower than *columns*; none after the last event of an attempt.

    It counts the phase's items, where it has some, else the run's steps. *elapsed* are the attempt's seconds,
    *in_phase* those of the phase; *plain* means ASCII.
    """
    from tqdm import tqdm

    if event.type in _LAST:
        return ""
    done, total, rate, unit = event.step, event.total_steps, 0.0, "step"
    words = "".join(
        [
            f", loss {event.loss:.4f}" if event.loss is not None else "",
            f", MFU {event.mfu:.0%}" if event.mfu is not None else "",
        ]
    )
    if event.phase is Phase.TRAINING and event.seconds_per_step:
        rate = 1 / event.seconds_per_step
    elif event.phase is not Phase.TRAINING and event.total:
        done, total, unit = event.done or 0, event.total, "item"
        rate = done / in_phase if in_phase else 0.0
    phase = str(event.phase or Phase.STARTING)
    if event.phase is Phase.RESUMING and not event.step:
        phase = "Loading"  # in the contract's word, a first attempt resumes at step 0
    if not total:
        return f"{phase} [{tqdm.format_interval(elapsed)}]"[: columns - 1]
    pace = "<{remaining}, {rate_inv_fmt}" if rate else ""
    # One column less than there are: a terminal wraps after the last one.
    made: str = tqdm.format_meter(
        min(done, total),
        total,
        elapsed,
        ncols=max(1, columns - 1),
        prefix=phase,
        ascii=plain,
        unit=unit,
        rate=rate or None,
        postfix=words.removeprefix(", "),
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}" + pace + "{postfix}]",
    )
    return made


def sentence(event: Event, *, durable: int = 0) -> str:
    """Return what is said of *event* above the bar; nothing where the bar says it.

    *durable* is the newest step that is known to be saved.
    """
    match event.type:
        case EventType.PROGRESS:
            return "" if event.loss is not None or event.total is not None else event.message
        case EventType.STARTED:
            return event.message
        case EventType.CHECKPOINT:
            return f"checkpoint at step {event.step}"
        case EventType.FINISHED:
            return f"finished at step {event.step}: {event.message}"
        case EventType.YIELDED:
            return _yielded(event, durable)
        case EventType.FAILED:
            return f"failed at step {event.step} ({event.reason}): {event.message}"


def _yielded(event: Event, durable: int) -> str:
    words = [event.message] if event.message else []
    step = event.step if event.saved is not Saved.NONE else durable
    if step:
        return "; ".join([*words, f"step {step} is saved"]) + ": run the same command to go on from there"
    if not words or event.step:  # at step 0 the message says that there was nothing
        words.append("nothing is saved")
    return "; ".join(words) + ": run the same command again"
