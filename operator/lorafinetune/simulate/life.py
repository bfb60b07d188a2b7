"""One run in virtual time: its resource, what the operator knows of its bucket, and what its bucket holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.status import ArtifactStatus, LoRAFineTuneStatus
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.engine.conditions import ConditionType, find
from lorafinetune.engine.decision import Job
from lorafinetune.engine.observation import ArtifactChecked, RunSeen, StorageChecked, StorageSeen, Tidied
from lorafinetune.simulate.account import Account
from lorafinetune.simulate.agenda import Date
from lorafinetune.simulate.attempt import DIGEST, Attempt
from lorafinetune.simulate.training import Effort


@dataclass(slots=True)
class Life:
    """A run from its apply to its end."""

    about: RunSeen
    spec: LoRAFineTuneSpec
    effort: Effort
    due: float | None = None
    """When its LoRA is wanted, Unix seconds; known to the operator only if the spec says so."""
    status: LoRAFineTuneStatus = field(default_factory=LoRAFineTuneStatus)
    attempts: dict[int, Attempt] = field(default_factory=dict)
    """Those whose pods are still there, by number."""
    spoken: Attempt | None = None
    """The newest attempt whose trainer has told anything."""
    storage: StorageSeen = field(default_factory=StorageSeen)
    head: CheckpointEntry | None = None
    """The newest checkpoint in its bucket."""
    artifact: int | None = None
    """The step of the artifact in its bucket."""
    look: Date | None = None
    """When the operator looks at it next, if nothing wakes it before."""
    looks: int = 0
    """Times that the operator looked at it."""
    account: Account = field(default_factory=Account)
    ended: float | None = None
    """When it succeeded or failed."""

    @property
    def steps(self) -> int:
        """Optimizer steps that it is to do."""
        assert self.spec.training.steps is not None, "simulated runs say their steps"
        return self.spec.training.steps

    @property
    def done(self) -> int:
        """Steps of it that are durable."""
        return max(self.head.step if self.head is not None else 0, self.artifact or 0)

    @property
    def succeeded(self) -> bool:
        """Whether its artifact is verified."""
        return self.status.phase == "Succeeded"

    @property
    def reason(self) -> str:
        """Why it ended without succeeding, in the status's word; empty while it has not."""
        ended = find(self.status.conditions, ConditionType.SUCCEEDED)
        return ended.reason if ended is not None and self.status.phase == "Failed" else ""

    @property
    def is_late(self) -> bool:
        """Whether it was wanted earlier than it succeeded, or has not succeeded."""
        return self.due is not None and not (self.succeeded and self.ended is not None and self.ended <= self.due)

    @property
    def billed(self) -> Decimal:
        """What the engine's ledger says that it has cost."""
        return Decimal((self.status.cost or "$0").lstrip("$"))

    def answer(self, job: Job, steps: int | None, now: float) -> None:
        """The bucket answers, at once and always well."""
        match job:
            case Job.CHECK:
                self.storage = replace(self.storage, checked=StorageChecked(True, "Ready", "it can be written", now))
            case Job.MARK:
                self.storage = replace(self.storage, marked=Tidied(True, "Marked", "the mark is there", now))
            case Job.READ:
                self.storage = replace(self.storage, newest=self.head, read=now)
            case Job.REBUILD:
                self.storage = replace(self.storage, rebuilt=Tidied(True, "HeadRebuilt", "made anew", now))
            case Job.VERIFY:
                self.storage = replace(self.storage, artifact=self._verified(steps, now))
            case Job.PRUNE:
                self.storage = replace(self.storage, pruned=Tidied(True, "Collected", "pruned", now))
            case Job.BURY:
                self.storage = replace(self.storage, buried=Tidied(True, "Collected", "buried", now))
            case Job.COLLECT:
                self.storage = replace(self.storage, collected=Tidied(True, "Collected", "collected", now))

    def _verified(self, wanted: int | None, now: float) -> ArtifactChecked:
        wanted = self.steps if wanted is None else wanted
        if self.artifact is None or self.artifact < wanted:
            return ArtifactChecked(False, True, "ArtifactMissing", "the head names no artifact", now, wanted)
        found = ArtifactStatus.model_construct(uri="s3://loras/artifact/", file="lora", sha256=DIGEST, size=1)
        return ArtifactChecked(True, True, "Verified", "all is there", now, wanted, found, self.artifact)
