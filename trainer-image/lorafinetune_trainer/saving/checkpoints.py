"""The attempt's dealings with the head: claim, pin, commit, resume, publish."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from lorafinetune.contract import canonical, layout
from lorafinetune.contract import head as heads
from lorafinetune.contract.head import ArtifactEntry, CheckpointEntry, ConditioningEntry, Head, HeadLost
from lorafinetune.contract.manifest import File, Manifest, SaveReason
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.storage import errors, inventory
from lorafinetune.storage import head as stored
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import invalid
from lorafinetune_trainer.saving import state
from lorafinetune_trainer.saving.uploads import Upload

if TYPE_CHECKING:
    import torch

LORA, EMA = "lora.", "ema."
"""How the names of the weights, and of their average, begin in a snapshot."""
PARALLEL: Final = 4
"""Parts that are put at once."""
ORDER_SECONDS: Final = 1.0
"""For so long a commit with a deadline waits for one that is changing the head."""
MAX_SWEEP: Final = 10_000
"""Keys that one sweep of left-over folders looks at."""
FENCE_SECONDS: Final = 5.0
"""While many objects are put, the fence is looked at anew after so long: less than what a collection waits for."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A resumable training state, on the CPU, that nothing changes any more."""

    step: int
    updates: int
    tensors: Mapping[str, torch.Tensor]
    scalars: Mapping[str, float | int | str | bool] = field(default_factory=dict)

    def published(self, *, average: bool) -> dict[str, torch.Tensor]:
        """Return the weights that are exported, by name: their *average* where the run keeps one."""
        begin = EMA if average else LORA
        return {name.removeprefix(begin): one for name, one in self.tensors.items() if name.startswith(begin)}


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint whose bytes are what its manifest names."""

    entry: CheckpointEntry
    manifest: Manifest
    parts: list[bytes]

    def snapshot(self) -> Snapshot:
        """Return the training state; ValueError where the bytes are none."""
        manifest = self.manifest
        return Snapshot(manifest.step, manifest.updates, state.join(self.parts), manifest.scalars)


class Checkpoints:
    """What one attempt may do to its run's head. Two threads may commit: the head sees their steps in order."""

    def __init__(self, bucket: Bucket, urgent: Bucket, config: RunConfig, pod_uid: str) -> None:
        """*bucket* and *urgent* stand on the run's prefix; the latter gives up early enough for the notice."""
        self._bucket = bucket
        self._urgent = urgent
        self._config = config
        self._pod_uid = pod_uid
        self._order = threading.Lock()
        self._prepared: dict[int, CheckpointEntry] = {}
        self._reasons: dict[int, SaveReason] = {}
        self._committed = 0
        self.rejected: dict[str, str] = {}
        """Why each checkpoint that did not verify was rejected, by its id."""
        self._swept = False
        self._looked = -math.inf
        self._looking = threading.Lock()
        self.deviation: str | None = None
        """How steps of this attempt's state were computed otherwise than the plan says."""
        self.attempt = 0
        self.head = Head(run_uid=config.run.uid, attempt=0)
        """The head as last written or read by this attempt."""

    def claim(self, attempt: int | None, *, expect_head: bool) -> Head:
        """Take the head for *attempt* (None: one more than the highest) and return it; raises Fenced or HeadLost.

        With *expect_head*, a missing head is a lost one: somebody knew a checkpoint that it must have named. An attempt
        with a number was made by an operator, who has put the owner mark before: where there is none, the run has been
        collected, and nothing may be written any more.
        """
        run, by_operator = self._config.run, attempt is not None
        try:
            if not by_operator:
                owner = stored.Owner(run_uid=run.uid, namespace=run.namespace, name=run.name)
                stored.mark_owner(self._bucket, owner)
            elif not stored.is_marked(self._bucket, run.uid):
                raise self._collected()
        except (errors.Conflict, errors.NotVerified) as error:
            raise invalid("StorageTaken", str(error)) from error

        def transition(head: Head | None) -> Head:
            # A head that names checkpoints is never made anew over them: whoever lost it, the operator rebuilds it.
            if head is None and (expect_head or any(self._bucket.walk(layout.CHECKPOINTS, limit=1))):
                where = self._bucket.uri(layout.HEAD)
                found = stored.read(self._bucket)
                if found.head is None:
                    what = "gone" if found.etag is None else "damaged"
                    raise heads.HeadLost(f"{where} is {what}, though a checkpoint of the run is known: {heads.WAY_OUT}")
                # It was made, and that checkpoint committed, between the look at the one and at the other.
                raise errors.Conflict(f"{where} has come meanwhile")
            number = attempt
            if number is None and head is not None:
                number = head.attempt if head.pod_uid == self._pod_uid else head.attempt + 1
            return heads.claim(head, run_uid=run.uid, attempt=number or 1, pod_uid=self._pod_uid)

        self.head = stored.change(self._bucket, transition)
        self.attempt = self.head.attempt
        # A collection deletes the mark, and then the head. A head that names nothing may be one that was made after
        # that, by this attempt or by another one that came as late.
        if by_operator and not self._names_anything() and not stored.is_marked(self._bucket, run.uid):
            self._bucket.erase(layout.HEAD)
            raise self._collected()
        return self.head

    def _names_anything(self) -> bool:
        head = self.head
        return bool(head.checkpoints or head.artifact or head.conditioning or head.plan)

    def _collected(self) -> HeadLost:
        where = self._bucket.uri()
        return HeadLost(
            f"{where} has no owner mark: the run has been deleted and collected, or somebody emptied its prefix. "
            "The operator puts the mark before the first attempt; by hand leave --attempt out"
        )

    def pin(self, plan: Plan, conditioning: ConditioningEntry) -> Head:
        """Write plan and conditioning into the head, where none are yet; return the head with those that count."""
        self.head = stored.change(
            self._bucket, lambda head: heads.pin(self._mine(head), plan=plan, conditioning=conditioning)
        )
        return self.head

    def newest_verified(self) -> Verified | None:
        """Read the newest checkpoint whose sizes and hashes are right; remember those that are not as rejected.

        Raises OtherVersion where only another version of lorafinetune can read it.
        """
        for entry in reversed(self.head.checkpoints):
            if entry.id in self.rejected:
                continue
            try:
                manifest = inventory.read_manifest(self._bucket, entry.folder, entry.manifest_sha256)
                if manifest.step != entry.step:
                    raise errors.NotVerified(f"{entry.folder} says that it is of step {manifest.step}")
                with ThreadPoolExecutor(PARALLEL, thread_name_prefix="load") as pool:
                    parts = list(pool.map(partial(self._read, entry.folder), manifest.files))
            except errors.OtherVersion:
                raise  # it is sound: to pass it over would throw its steps away
            except errors.NotVerified as error:
                self.reject(entry, str(error))
                continue
            self._committed = entry.step
            return Verified(entry, manifest, parts)
        self._committed = 0
        return None

    def reject(self, entry: CheckpointEntry, why: str) -> None:
        """Remember that *entry* is of no use: it leaves the head with the next commit."""
        self.rejected[entry.id] = why

    def commit(
        self,
        snapshot: Snapshot,
        reason: SaveReason,
        *,
        upload: Upload | None = None,
        deadline: float | None = None,
        before_head: Callable[[], None] | None = None,
    ) -> CheckpointEntry | None:
        """Make *snapshot* durable: content, manifest, head; return its entry, or None where a newer one is durable.

        *upload* is told what is sent; given up by another thread, it ends the commit with GivenUp. *deadline* is a
        monotonic time; the commit that must meet it uses short time-outs. *before_head* is called when all but the
        head is written, and what it raises ends the commit.
        """
        bucket = self._urgent if deadline is not None else self._bucket
        upload = upload or Upload(0)
        self.check_fence()
        # One step has one manifest, however often and for whatever reason it is saved: a repeat after a lost answer
        # must not write another one under the name that the head may hold already.
        reason = self._reasons.setdefault(snapshot.step, reason)
        try:
            entry = self._prepared.get(snapshot.step) or self._put(bucket, snapshot, reason, upload)
            if before_head is not None:
                before_head()
        except BaseException:
            self._swept = False  # what was put of it is left over
            raise

        def transition(head: Head | None) -> Head:
            upload.go_on()  # one that was given up in favour of a newer state must not follow it into the head
            return heads.commit(
                self._mine(head), entry, keep=self._config.checkpoint.keep, rejected=frozenset(self.rejected)
            )

        # The one before may hang in its swap. The head itself then keeps the two apart: that one has been given up.
        ordered = self._order.acquire(timeout=-1.0 if deadline is None else ORDER_SECONDS)
        try:
            if snapshot.step <= self._committed:
                self._swept = False
                return None
            limit = stored.SWAP_LIMIT if deadline is None else max(1.0, deadline - time.monotonic())
            self.head = stored.change(bucket, transition, limit=limit, sleep=upload.rest)
            self._committed = snapshot.step
        finally:
            if ordered:
                self._order.release()
        return entry

    def tidy(self) -> None:
        """Delete what no longer counts: the head's garbage and, where there may be some, folders that nothing names."""
        folders = list(self.head.garbage)
        if not self._swept:
            folders += [one for one in self._left_over() if one not in folders]
        if folders:
            # Whoever has made a lost head anew since may have put what looks left over, and the head may name it.
            self._mine(stored.read(self._bucket).head)
        for folder in folders:
            self._bucket.delete(one.key for one in self._bucket.walk(folder))
        self._swept = True
        if self.head.garbage:
            gone = frozenset(folders)
            with self._order:
                self.head = stored.change(self._bucket, lambda head: heads.sweep(self._mine(head), gone))

    def put(self, key: str, body: bytes, deadline: float | None = None) -> None:
        """Put an object of the run, if this attempt may; what must meet *deadline* uses short time-outs."""
        self.check_fence()
        (self._urgent if deadline is not None else self._bucket).put(key, body)

    def publish(
        self,
        step: int,
        updates: int,
        files: Mapping[str, bytes],
        provenance: Mapping[str, str],
        more: Iterable[tuple[str, bytes]] = (),
    ) -> ArtifactEntry:
        """Make the artifact durable: files, manifest, head; return its entry. *more* files are made one at a time."""
        folder = layout.artifact(self.attempt)
        self.check_fence()
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="publish") as pool:
            done = list(pool.map(lambda one: self._put_file(self._bucket, folder, *one), sorted(files.items())))
        done += [self._put_file(self._bucket, folder, *one) for one in more]
        manifest = Manifest(
            kind="artifact",
            run_uid=self._config.run.uid,
            attempt=self.attempt,
            step=step,
            updates=updates,
            reason=SaveReason.FINAL,
            files=sorted(done, key=lambda one: one.name),
            provenance=dict(provenance),
        )
        sha256 = inventory.put_folder(self._bucket, folder, manifest)
        entry = ArtifactEntry(
            attempt=self.attempt, step=step, manifest_sha256=sha256, size=manifest.total_bytes, deviation=self.deviation
        )
        with self._order:
            rejected = frozenset(self.rejected)
            self.head = stored.change(
                self._bucket, lambda head: heads.publish(self._mine(head), entry, rejected=rejected)
            )
        return entry

    def check_fence(self) -> None:
        """Raise Fenced or HeadLost if that can be told. Before content is put: a zombie's would be left for ever.

        Whoever deletes a run waits for the saves that are under way on lost nodes, not for those that begin later.
        """
        try:
            head = stored.read(self._urgent).head
            if head is None and stored.read_owner(self._urgent) is not None:
                return  # only the head was lost: who makes it anew can use what is put now
        except errors.StorageError:
            return  # the write that follows says what is wrong
        self._mine(head)

    def before_put(self) -> None:
        """Do the same before one of many objects: a look that is younger than FENCE_SECONDS is as good as another."""
        # Threads that put at the same time wait for one look together: before it has an answer it says nothing.
        with self._looking:
            if (now := time.monotonic()) - self._looked >= FENCE_SECONDS:
                self.check_fence()
                self._looked = now

    def is_whole(self, artifact: ArtifactEntry) -> bool:
        """Whether every byte of *artifact* is what its manifest names."""
        try:
            inventory.verify(self._bucket, artifact.folder, artifact.manifest_sha256)
        except errors.OtherVersion:
            raise
        except errors.NotVerified:
            return False
        return True

    def _mine(self, head: Head | None) -> Head:
        return heads.check_fence(head, attempt=self.attempt, pod_uid=self._pod_uid)

    def _put(self, bucket: Bucket, snapshot: Snapshot, reason: SaveReason, upload: Upload) -> CheckpointEntry:
        state.check_finite(snapshot.tensors, snapshot.step)
        folder = layout.checkpoint(self.attempt, snapshot.step)
        # No more parts exist than are on their way: all at once would be the whole state once more.
        places = threading.Semaphore(PARALLEL)

        def put(name: str, body: memoryview) -> File:
            try:
                return self._put_file(bucket, folder, name, body, upload.go_on)
            finally:
                places.release()

        waiting: list[Future[File]] = []
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="put") as pool:
            for part in state.split(snapshot.tensors):
                places.acquire()
                upload.go_on()
                waiting.append(pool.submit(put, *part))
                if any(one.done() and one.exception() is not None for one in waiting):
                    break
            files = [one.result() for one in waiting]
        manifest = Manifest(
            kind="checkpoint",
            run_uid=self._config.run.uid,
            attempt=self.attempt,
            step=snapshot.step,
            updates=snapshot.updates,
            reason=reason,
            files=files,
            scalars=dict(snapshot.scalars),
        )
        sha256 = inventory.put_folder(bucket, folder, manifest)
        entry = CheckpointEntry(
            attempt=self.attempt,
            step=snapshot.step,
            manifest_sha256=sha256,
            size=manifest.total_bytes,
            deviation=self.deviation,
        )
        self._prepared[snapshot.step] = entry
        return entry

    def _put_file(
        self,
        bucket: Bucket,
        folder: str,
        name: str,
        body: bytes | memoryview,
        watch: Callable[[int], None] | None = None,
    ) -> File:
        sha256 = canonical.sha256(body)
        bucket.put(folder + name, body, sha256=sha256, watch=watch)
        return File(name=name, size=len(body), sha256=sha256)

    def _read(self, folder: str, file: File) -> bytes:
        return inventory.read_file(self._bucket, folder, name=file.name, size=file.size, sha256=file.sha256)

    def _left_over(self) -> list[str]:
        """Folders that the head does not name and never will: earlier attempts' (fenced), and our own older ones."""
        named = {entry.folder for entry in self.head.checkpoints}
        if self.head.artifact is not None:
            named.add(self.head.artifact.folder)
        found: dict[str, None] = {}
        for parent in (layout.CHECKPOINTS, layout.ARTIFACTS):
            for one in self._bucket.walk(parent, limit=MAX_SWEEP):
                name, slash, _ = one.key.removeprefix(parent).partition("/")
                attempt, _, step = name.partition("-")
                if not (slash and attempt.isdigit() and (step.isdigit() or not step)) or f"{parent}{name}/" in named:
                    continue
                mine = int(attempt) == self.attempt and step != "" and int(step) < self._committed
                if int(attempt) < self.attempt or mine:
                    found[f"{parent}{name}/"] = None
        return list(found)
