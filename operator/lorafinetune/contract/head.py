"""The head: the one mutable object of a run in storage, and every change that may be made to it.

The changes are pure functions from head to head. :mod:`lorafinetune.storage.head` applies them by compare-and-swap and,
where the answer was lost, asks the matching ``has_...`` function whether the change took effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from lorafinetune.contract import layout
from lorafinetune.contract.manifest import Sha256
from lorafinetune.contract.model import CarriedModel
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.training import MAX_STEPS

MIN_KEEP = 2
MAX_ATTEMPTS: Final = 1_000_000
MAX_HEAD_BYTES = 1024 * 1024
MAX_DEVIATION = 512


class Fenced(Exception):  # noqa: N818 - the design's word
    """The head names another attempt (or pod), or is a tombstone: the speaker may not change it."""


WAY_OUT: Final = (
    "the operator makes it anew from the manifests; by hand put it back as it was (from a backup, or an older version "
    "where the bucket keeps them), or choose another run.uid, which begins anew"
)


class HeadLost(Exception):  # noqa: N818
    """A head that was there is gone. Only the operator may rebuild it."""


class CheckpointEntry(CarriedModel):
    """One checkpoint that counts, as the head names it."""

    attempt: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)]
    step: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    manifest_sha256: Sha256
    size: Annotated[int, Field(ge=0)] = 0
    """Bytes of all its files."""
    deviation: Annotated[str, Field(max_length=MAX_DEVIATION)] | None = None
    """How steps in it were computed otherwise than the plan says (another device or library); None where none was."""

    @property
    def folder(self) -> str:
        """The checkpoint's folder, relative to the run's prefix."""
        return layout.checkpoint(self.attempt, self.step)

    @property
    def id(self) -> str:
        """``<attempt>-<step>``: unique in a run, since attempts are never reused and steps never repeat in one."""
        return f"{self.attempt}-{self.step}"


class ConditioningEntry(CarriedModel):
    """The pinned latents and embeddings: no zombie and no other GPU can change them."""

    manifest: str
    """Key of the manifest, relative to the run's prefix."""
    manifest_sha256: Sha256


class ArtifactEntry(CarriedModel):
    """The final LoRA, as the head names it."""

    attempt: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)]
    step: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    manifest_sha256: Sha256
    size: Annotated[int, Field(ge=0)] = 0
    deviation: Annotated[str, Field(max_length=MAX_DEVIATION)] | None = None
    """As a checkpoint's."""

    @property
    def folder(self) -> str:
        """The artifact's folder, relative to the run's prefix."""
        return layout.artifact(self.attempt)


class Head(CarriedModel):
    """Which attempt may commit, and what counts. A tombstone names attempt and nothing else."""

    version: Literal[1] = 1
    run_uid: str
    attempt: Annotated[int, Field(ge=0)]
    """The fence: no other attempt can commit."""
    pod_uid: str = ""
    tombstone: bool = False
    """The run is being deleted: nobody can commit ever again."""
    plan: Plan | None = None
    conditioning: ConditioningEntry | None = None
    checkpoints: list[CheckpointEntry] = Field(default_factory=list)
    """In the order of their commits: the last is the newest."""
    garbage: list[str] = Field(default_factory=list)
    """Folders that no longer count and may be deleted."""
    artifact: ArtifactEntry | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, camelCase, without absent members."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def newest(self) -> CheckpointEntry | None:
        """The checkpoint to resume from, if it verifies."""
        return self.checkpoints[-1] if self.checkpoints else None


def claim(head: Head | None, *, run_uid: str, attempt: int, pod_uid: str) -> Head:
    """Name *attempt* (and its pod) as the one that may commit.

    Allowed on no head, on a lower attempt, or on the same attempt of the same pod; raises Fenced otherwise.
    Folders that an earlier attempt left half-written need no entry: they are swept by inventory, not by name.
    """
    if head is None:
        return Head(run_uid=run_uid, attempt=attempt, pod_uid=pod_uid)
    if head.run_uid != run_uid:
        raise Fenced(f"the head belongs to run {head.run_uid}, not to {run_uid}")
    if head.tombstone:
        raise Fenced("the run has been deleted")
    if head.attempt > attempt or (head.attempt == attempt and head.pod_uid != pod_uid):
        raise Fenced(
            f"attempt {head.attempt} (pod {head.pod_uid}) holds the head; this is attempt {attempt} (pod {pod_uid})"
        )
    return head.model_copy(update={"attempt": attempt, "pod_uid": pod_uid})


def holds(head: Head, *, attempt: int, pod_uid: str) -> bool:
    """Whether *attempt* of *pod_uid* is the one that the head names."""
    return not head.tombstone and head.attempt == attempt and head.pod_uid == pod_uid


def check_fence(head: Head | None, *, attempt: int, pod_uid: str) -> Head:
    """Return *head* if the speaker holds it; raises HeadLost or Fenced otherwise."""
    if head is None:
        raise HeadLost(f"head.json is gone or damaged, and an attempt that had one must stop: {WAY_OUT}")
    if not holds(head, attempt=attempt, pod_uid=pod_uid):
        why = (
            "the run has been deleted"
            if head.tombstone
            else f"attempt {head.attempt} (pod {head.pod_uid}) holds the head"
        )
        raise Fenced(f"{why}; this is attempt {attempt} (pod {pod_uid})")
    return head


def pin(head: Head, *, plan: Plan | None = None, conditioning: ConditioningEntry | None = None) -> Head:
    """Write plan or conditioning into the head, once: what is there already stays as it is."""
    return head.model_copy(
        update={"plan": head.plan or plan, "conditioning": head.conditioning or conditioning},
    )


def commit(head: Head, entry: CheckpointEntry, *, keep: int, rejected: frozenset[str] = frozenset()) -> Head:
    """Append *entry* as the newest checkpoint; surplus and *rejected* ones (by id) move to the garbage.

    At least ``MIN_KEEP`` newest entries stay, so there is no moment without a durable checkpoint.
    Committing what is there already changes nothing.
    """
    if has_commit(head, entry):
        return head
    kept = [one for one in head.checkpoints if one.id not in rejected]
    kept.append(entry)
    kept = kept[-max(keep, MIN_KEEP) :]
    folders = {one.folder for one in kept}
    surplus = [one.folder for one in head.checkpoints if one.folder not in folders]
    garbage = [folder for folder in dict.fromkeys([*head.garbage, *surplus]) if folder not in folders]
    return head.model_copy(update={"checkpoints": kept, "garbage": garbage})


def has_commit(head: Head, entry: CheckpointEntry) -> bool:
    """Whether *entry* counts: it stands among the checkpoints, or did and has been superseded since."""
    return entry in head.checkpoints or entry.folder in head.garbage


def sweep(head: Head, deleted: frozenset[str]) -> Head:
    """Take folders that have been deleted out of the garbage."""
    return head.model_copy(update={"garbage": [folder for folder in head.garbage if folder not in deleted]})


def publish(head: Head, artifact: ArtifactEntry, *, rejected: frozenset[str] = frozenset()) -> Head:
    """Name the artifact. A later attempt's artifact replaces an earlier one, whose folder becomes garbage.

    So do checkpoints that were *rejected* (by id): what is published then is the best that there is.
    """
    kept = [one for one in head.checkpoints if one.id not in rejected]
    if head.artifact == artifact and kept == head.checkpoints:
        return head
    gone = [one.folder for one in head.checkpoints if one not in kept]
    if head.artifact is not None and head.artifact.folder != artifact.folder:
        gone.append(head.artifact.folder)
    garbage = [folder for folder in dict.fromkeys([*head.garbage, *gone]) if folder != artifact.folder]
    return head.model_copy(update={"artifact": artifact, "checkpoints": kept, "garbage": garbage})


def retire(head: Head) -> Head:
    """Give up all checkpoints and the conditioning once the artifact is verified: the product is all that stays."""
    folders = [entry.folder for entry in head.checkpoints]
    return head.model_copy(
        update={"checkpoints": [], "conditioning": None, "garbage": [*dict.fromkeys([*head.garbage, *folders])]},
    )


def bury(head: Head | None, *, run_uid: str, attempt: int, found: ArtifactEntry | None = None) -> Head:
    """Return the tombstone: nobody commits any more. *attempt* is the highest that the operator ever made.

    *found* is the artifact to name where there is no head that could.
    """
    artifact = head.artifact if head is not None else found
    top = max(attempt, head.attempt if head is not None else 0)
    return Head(run_uid=run_uid, attempt=top, tombstone=True, artifact=artifact)
