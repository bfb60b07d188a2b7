"""How far the run is, as people read it: step, newest checkpoint, loss, speed and ETA. Nothing ever goes backward."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.status import CheckpointStatus, LoRAFineTuneStatus
from lorafinetune.contract import layout
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine import eta
from lorafinetune.engine.decision import Announcement
from lorafinetune.engine.observation import Observation
from lorafinetune.engine.progress import Progress
from lorafinetune.engine.times import exact, stamp

PLAIN: Final = 100_000.0
"""A loss beyond it has diverged: it is told by its order, for a column has only so much room."""


def progressed(status: LoRAFineTuneStatus, seen: Observation) -> LoRAFineTuneStatus:
    """Return *status* with what trainer and bucket say by now of how far the run is."""
    if status.completion_time is not None:
        return status  # the last word has been said
    steps, progress = seen.steps, seen.progress
    newest = status.attempts[-1] if status.attempts else None
    stored = _entry(status)
    known = [one for one in (stored, seen.storage.newest, progress.checkpoint if progress else None) if one]
    checkpoint = max(known, key=lambda one: (one.step, one.attempt), default=None)
    step = max(
        status.step or 0,
        checkpoint.step if checkpoint else 0,
        *(entry.to_step or 0 for entry in status.attempts),
        0,
    )
    changes: dict[str, object] = {
        **stepped(step, steps),
        "eta": None,
    }
    if seen.run.deleting_since is not None:
        changes["checkpoint"] = None  # its folder goes
    elif checkpoint is not None and (stored is None or checkpoint.id != stored.id):
        place = layout.run_prefix(seen.spec.storage.uri, seen.run.namespace, seen.run.name, seen.run.uid)
        changes["checkpoint"] = CheckpointStatus(
            attempt=checkpoint.attempt,
            step=checkpoint.step,
            uri=f"{place}{checkpoint.folder}",
            manifest_sha256=checkpoint.manifest_sha256,
            time=stamp(seen.now),
        )
    if newest is not None and newest.number != seen.status.attempt:
        changes["event_sequence"] = 0  # every attempt counts from one: the number before it must not hush it
    if progress is not None and newest is not None and progress.attempt == newest.number:
        changes["event_sequence"] = progress.sequence
        changes |= _speed(progress)
    status = status.model_copy(update=changes)
    left = eta.remaining(seen, status)
    return status if left is None else status.model_copy(update={"eta": exact(left)})


def stepped(step: int, steps: int | None) -> dict[str, object]:
    """Return the status' members for *step* of *steps*, of which nobody may know yet how many they are."""
    if not steps:
        return {"step": step, "steps": None, "step_of": f"{step}/?", "progress": None}
    step = min(step, steps)
    return {"step": step, "steps": steps, "step_of": f"{step}/{steps}", "progress": f"{100 * step // steps}%"}


def new_checkpoint(before: LoRAFineTuneStatus, after: LoRAFineTuneStatus) -> Announcement | None:
    """Return the word that there is a new checkpoint, if there is."""
    new = after.checkpoint
    if new is None or (before.checkpoint is not None and before.checkpoint.manifest_sha256 == new.manifest_sha256):
        return None
    return Announcement("CheckpointCommitted", f"attempt {new.attempt} committed a checkpoint at step {new.step}")


def _speed(progress: Progress) -> dict[str, object]:
    changes: dict[str, object] = {}
    if progress.loss is not None:
        changes["loss"] = f"{progress.loss:.4f}" if abs(progress.loss) < PLAIN else f"{progress.loss:.3e}"
    if progress.images_per_second is not None:
        changes["images_per_second"] = f"{progress.images_per_second:.3g}"
    if progress.mfu is not None:
        changes["mfu"] = f"{100 * min(progress.mfu, 1.0):.0f}%"
    if progress.memory_bytes is not None:
        changes["memory"] = f"{progress.memory_bytes / 2**30:.1f} GiB"
    if progress.save_seconds is not None:
        changes["save_seconds"] = f"{progress.save_seconds:.2g}"
    if progress.checkpoint_every_steps is not None:
        changes["checkpoint_every"] = progress.checkpoint_every_steps
    if progress.seconds_per_step is not None:
        changes["seconds_per_step"] = f"{progress.seconds_per_step:.3g}"
    return changes


def _entry(status: LoRAFineTuneStatus) -> CheckpointEntry | None:
    known = status.checkpoint
    if known is None:
        return None
    return CheckpointEntry(attempt=known.attempt, step=known.step, manifest_sha256=known.manifest_sha256)
