"""The facts that tell why an attempt ended, of whatever source, and the few sentences that can be read from them.

``classify`` weighs them; here nothing is decided. Facts come in any order and may be late: so each property asks for
something that is there, never for something that is not there yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lorafinetune.api.gpupool import CapacityType
from lorafinetune.contract.event import Saved
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.engine.observation import NodeSeen, PodSeen, StorageSeen
from lorafinetune.engine.progress import Progress

STALE_MARK: Final = 120.0
"""Seconds after which a DisruptionTarget that no deletion followed means nothing: its own controller clears it then."""
NOTICE_WINDOW: Final = 300.0
"""Seconds that may lie between a node's mark and the end of the container that it explains: the longest notice."""
CLOCK_SKEW: Final = 5.0
"""Seconds by which the clocks of node and control plane may differ."""
LATE_MARK: Final = 120.0
"""Seconds after a kill by which the platform's mark for it may be dated: a dead machine is noticed late."""
_CODES: Final = frozenset(ExitCode)

SIGNALS: Final = frozenset({128 + 2, 128 + 9, 128 + 15})
"""Exit codes of a process that was interrupted, killed or terminated from outside."""
UNKNOWN_ENDS: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Words for a container that was lost sight of (by its kubelet, by its runtime after a reboot); its code is made up."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one attempt's end."""

    pod: PodSeen
    node: NodeSeen | None
    """None when there is no such node any more (or the pod was never bound)."""
    now: float
    progress: Progress | None = None
    """Fold of this attempt's events; None where there are none, or only another attempt's."""
    storage: StorageSeen = field(default_factory=StorageSeen)
    """What the bucket said since this attempt began; nothing where another attempt has begun since."""
    steps: int | None = None
    """Optimizer steps of the run."""
    from_step: int = 0
    """The step that the attempt began at."""
    suspended: bool = False
    """The user wants no attempt: the run is suspended or being deleted."""
    deleted: bool = False
    """The run is being deleted: its head may be a tombstone by now."""
    machine: str = ""
    """The machine that the attempt was first seen on."""
    started: bool = False
    """Its container had started, as far as was ever seen."""

    # What the trainer said

    @property
    def code(self) -> int | None:
        """The trainer's own exit code: of its last words or event, where it was killed after it had told them."""
        code, words = self.pod.exit_code, self.pod.termination
        if code is not None and code not in SIGNALS:
            return code
        if words is not None and words.exit_code in _CODES:
            return words.exit_code
        told = self.progress.exit_code if self.progress is not None else None
        return told if told in _CODES else code

    @property
    def told(self) -> str:
        """The reason that the trainer gave: in its termination message, else in its last event."""
        return (self.pod.termination.reason if self.pod.termination else "") or self._event_reason

    @property
    def words(self) -> str:
        """What it said to that."""
        message = self.pod.termination.message if self.pod.termination else ""
        if self.pod.termination is not None and self.pod.termination.reason:
            return message
        return message or (self.progress.message if self.progress is not None else "")

    @property
    def _event_reason(self) -> str:
        return self.progress.reason if self.progress is not None else ""

    @property
    def saved(self) -> str:
        """What of the work was saved at the end, as the rest of a sentence."""
        words, progress = self.pod.termination, self.progress
        saved = (words.saved if words is not None else None) or (progress.saved if progress is not None else None)
        if saved is None:
            return ""
        step = words.durable_step if words is not None else (progress.step if progress is not None else 0)
        return {
            Saved.NEW: f"; step {step} was saved within the notice",
            Saved.DURABLE: f"; step {step} was saved already",
            Saved.NONE: "; nothing more was saved",
        }[saved]

    # What the bucket says

    @property
    def is_published(self) -> bool:
        """The artifact of the final step is in the head, by the trainer's event or by our own reading."""
        if self.progress is not None and self.progress.artifact is not None:
            return True
        published = self.storage.published
        if published is None or published.attempt != self.pod.attempt:
            return False
        return self.steps is not None and published.step >= self.steps

    @property
    def is_unpublished(self) -> bool:
        """The artifact was looked for in storage, and there is none, or a damaged one."""
        checked = self.storage.artifact
        if checked is None or checked.ok or not checked.final:
            return False
        return not checked.is_outgrown(self.pod.attempt, self.from_step)

    # What the platform did to the pod

    @property
    def has_own_code(self) -> bool:
        """The process ended by itself: what happened to its node later has nothing to do with that."""
        code = self.pod.exit_code
        if code is None or code in SIGNALS or self.pod.container_reason in UNKNOWN_ENDS:
            return False
        return code != ExitCode.YIELDED

    @property
    def has_run(self) -> bool:
        """The trainer's container had started, as far as was ever seen."""
        return self.started or self.pod.exit_code is not None

    @property
    def was_disrupted(self) -> bool:
        """DisruptionTarget is true, and speaks of this end: not cleared, not stale, not set on a pod long over."""
        pod = self.pod
        if not pod.disruption:
            return False
        since, ended = pod.disruption_since, pod.ended
        if since is None or ended is None or pod.exit_code is None:
            return True
        if since > ended + (CLOCK_SKEW if self.has_own_code else LATE_MARK):
            return False  # a pod that was over already was cleared away
        return pod.deleting or bool(pod.pod_reason) or ended <= since + STALE_MARK

    @property
    def was_deleted(self) -> bool:
        """Its deletion was asked for before it ended."""
        pod = self.pod
        if not pod.deleting:
            return False
        if pod.deleting_since is None or pod.ended is None or pod.exit_code is None:
            return True
        return pod.deleting_since <= pod.ended + CLOCK_SKEW

    # What happened to the node

    @property
    def is_spot(self) -> bool:
        """The node was interruptible: by its labels, else by its pool."""
        kind = (self.node.capacity_type if self.node is not None else "") or self.pod.capacity_type
        return kind == CapacityType.SPOT

    @property
    def is_replaced(self) -> bool:
        """The node of that name is another machine, or another boot of it, than the one that the attempt ran on."""
        return self.node is not None and is_another(self.node, self.machine, self.pod)

    def is_near(self, mark: float | None) -> bool:
        """Whether a mark on the node, set at that time (None: it does not tell), can explain this end.

        A process with a code of its own was still there when it ended: a mark that came later explains nothing, such
        as that of an autoscaler which clears away the node that has become empty.
        """
        ended = self.pod.ended
        if not self.has_own_code:
            return mark is None or ended is None or mark <= ended + LATE_MARK
        if mark is None or ended is None:
            return self.was_deleted  # as it is by us, as soon as we see a mark while the trainer lives
        return ended - NOTICE_WINDOW <= mark <= ended + CLOCK_SKEW


def is_another(node: NodeSeen, machine: str, pod: PodSeen) -> bool:
    """Whether *node* is not the machine that *pod* was bound to, although it has its name."""
    bound = pod.bound if pod.bound is not None else pod.created
    if node.created is not None and node.created > bound + CLOCK_SKEW:
        return True
    known_uid, _, known_boot = machine.partition("/")
    if known_uid and node.uid and known_uid != node.uid:
        return True
    return bool(known_boot and node.boot_id and known_boot != node.boot_id)
