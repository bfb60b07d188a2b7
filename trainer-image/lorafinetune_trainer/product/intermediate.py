"""LoRAs of chosen steps, kept beside the artifact (``checkpoint.keepIntermediate``).

At a chosen step the weights are taken; they are durable under ``intermediate/<step>-<attempt>-<sha256>.safetensors``
before a checkpoint of that step or a later one counts, so no attempt can resume behind a step that was not kept. The
bytes are a function of the step: an attempt that repeats it writes the same, and its copy takes the place of those of
earlier attempts, which may have computed otherwise. With the artifact they are published in both formats, after their
bytes were found to be what their names say, and the working copies go.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import ArtifactEntry
from lorafinetune.contract.runconfig import MAX_INTERMEDIATE, KeepIntermediate
from lorafinetune.storage import errors, inventory
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.failure import Failure, invalid
from lorafinetune_trainer.product import export, names, reading
from lorafinetune_trainer.product.product import Product

if TYPE_CHECKING:
    import torch

MAX_PENDING: Final = 2
"""LoRAs that wait in memory for the next checkpoint: one more, and the oldest is put at once."""
MAX_HELD: Final = 8
"""LoRAs that wait in memory while the bucket cannot be reached: one more, and the attempt ends."""
MAX_COPIES: Final = 10_000
"""Working copies that are looked at: choices may have been changed again and again."""
_COPY: Final = re.compile(r"^(\d+)-(\d+)-([0-9a-f]{64})\.safetensors$")
_PUBLISHED: Final = re.compile(r"^step-(\d+)_kohya\.safetensors$")


def chosen(keep: KeepIntermediate | None, total: int) -> list[int]:
    """Return the steps of a run of *total* steps whose LoRAs are kept; Failure (InvalidConfig) if they are too many."""
    if keep is None:
        return []
    every = range(keep.every_steps, total + 1, keep.every_steps) if keep.every_steps is not None else range(0)
    if (number := len(every)) <= MAX_INTERMEDIATE:
        found = {*every, *(step for step in keep.steps if step <= total)}
        if (number := len(found)) <= MAX_INTERMEDIATE:
            return sorted(found)
    raise invalid(
        "InvalidConfig",
        f"checkpoint.keepIntermediate chooses {number} of {total} steps, and at most {MAX_INTERMEDIATE} are "
        "kept: raise everySteps, or name fewer steps",
    )


def name(step: int) -> str:
    """Return what the diffusers file of *step* is called beside the artifact."""
    return f"step-{step:06}.safetensors"


def kohya_name(step: int) -> str:
    """Return what the kohya file of *step* is called beside the artifact."""
    return f"step-{step:06}_kohya.safetensors"


class _Copy(NamedTuple):
    """A working copy, by what its name says: of two of one step the later attempt's is greater."""

    step: int
    attempt: int
    sha256: str

    @property
    def key(self) -> str:
        return f"{layout.INTERMEDIATE}{self.step}-{self.attempt}-{self.sha256}.safetensors"

    def read(self, bucket: Bucket) -> bytes:
        """Return its bytes; raises NotVerified or ObjectMissing where they are not there as they were put."""
        body = bucket.get(self.key).body
        if (found := canonical.sha256(body)) != self.sha256:
            raise errors.NotVerified(f"{bucket.uri(self.key)} has SHA-256 {found}")
        return body


class Intermediate:
    """The LoRAs of chosen steps of one attempt. Safe to use from the training thread and both saving threads."""

    def __init__(
        self,
        steps: list[int],
        *,
        attempt: int,
        product: Product,
        weights: Callable[[], dict[str, torch.Tensor]],
        put: Callable[[str, bytes, float | None], None],
    ) -> None:
        """*weights* returns copies of the newest published weights, from any thread, in a moment.

        *put* makes an object of the run durable, before the monotonic time that it is given if there is one.
        """
        self._steps = frozenset(steps)
        self._attempt = attempt
        self._product = product
        self._weights = weights
        self._put = put
        self._lock = threading.Lock()
        self._pending: dict[int, Mapping[str, torch.Tensor]] = {}
        self._done: set[int] = set()
        self._tidied: frozenset[int] = frozenset()
        self.names: list[str] = []
        """What the kohya files that :meth:`published` has found are called beside the artifact."""

    def take(self, step: int) -> None:
        """Take the weights if *step*, which has just been done, is a chosen one. Called before the next step begins."""
        if step not in self._steps:
            return
        taken = self._weights()
        with self._lock:
            self._pending.setdefault(step, taken)
            waiting = sorted(self._pending)
        if len(waiting) > MAX_PENDING:
            try:
                self.beside(waiting[-1 - MAX_PENDING])
            except errors.Unreachable:  # no reason to lose the steps since the last checkpoint
                if len(waiting) > MAX_HELD:
                    raise

    def beside(self, step: int, deadline: float | None = None, bucket: Bucket | None = None) -> None:
        """Make durable what was taken up to *step*; called before a checkpoint of *step* may count.

        Where there is time, the copies that earlier attempts have left of it in *bucket* are deleted.

        At SIGTERM a checkpoint may be saved before the training thread has come to take that step's weights. It cannot
        begin the next step without, so the newest weights are those of *step*.
        """
        if step in self._steps and not self._has(step):
            newest = self._weights()
            with self._lock:
                if step not in self._done:  # the training thread may have come meanwhile, and gone on
                    self._pending.setdefault(step, newest)
        while True:
            with self._lock:
                waiting = [one for one in sorted(self._pending) if one <= step]
                if not waiting:
                    break
                first = waiting[0]
                weights = self._pending[first]
            body = export.kohya_file(weights, replace(self._product, steps=first))
            self._put(_Copy(first, self._attempt, canonical.sha256(body)).key, body, deadline)
            with self._lock:
                self._pending.pop(first, None)
                self._done.add(first)
        if bucket is not None and deadline is None:
            self._tidy(bucket)

    def published(
        self, bucket: Bucket, former: ArtifactEntry | None, note: Callable[[str], None]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield the files of all chosen steps, one at a time; what cannot be had is told to *note* and left out.

        *former* is an artifact of fewer steps (training.steps has been raised since): its LoRAs go on.
        """
        self.names = []
        newest = {one.step: one for one in sorted(_copies(bucket))}  # the last of a step is the latest attempt's
        older = _of_artifact(bucket, former) if former is not None else {}
        for step in sorted(self._steps):
            try:
                body = newest[step].read(bucket) if step in newest else older[step]()
                weights = _weights(reading.read(body, self._product.layers_per_block))
            except KeyError:
                note(
                    f"the LoRA of step {step} is not there and left out: checkpoint.keepIntermediate chose that step "
                    f"when it had been done, a notice was too short for it, or {bucket.uri(layout.INTERMEDIATE)} was "
                    "emptied"
                )
                continue
            except (Failure, errors.ObjectMissing, errors.NotVerified) as error:
                note(f"the LoRA of step {step} is damaged and left out: {error}")
                continue
            self.names.append(kohya_name(step))
            yield kohya_name(step), body
            yield name(step), export.diffusers_file(weights, replace(self._product, steps=step))

    def _has(self, step: int) -> bool:
        with self._lock:
            return step in self._done or step in self._pending

    @staticmethod
    def discard(bucket: Bucket) -> None:
        """Delete the working copies: the head names an artifact that has them."""
        bucket.delete(one.key for one in bucket.walk(layout.INTERMEDIATE, limit=MAX_COPIES))

    def _tidy(self, bucket: Bucket) -> None:
        """Delete the copies of earlier attempts that this one has put anew; what cannot be deleted may stay."""
        with self._lock:
            done = frozenset(self._done)
        if done == self._tidied:
            return
        with contextlib.suppress(errors.StorageError):
            bucket.delete(one.key for one in _copies(bucket) if one.step in done and one.attempt < self._attempt)
            self._tidied = done


def _copies(bucket: Bucket) -> list[_Copy]:
    names = (one.key.removeprefix(layout.INTERMEDIATE) for one in bucket.walk(layout.INTERMEDIATE, limit=MAX_COPIES))
    return [_Copy(int(found[1]), int(found[2]), found[3]) for one in names if (found := _COPY.match(one))]


def _of_artifact(bucket: Bucket, former: ArtifactEntry) -> dict[int, Callable[[], bytes]]:
    try:
        manifest = inventory.read_manifest(bucket, former.folder, former.manifest_sha256)
    except errors.NotVerified:
        return {}
    return {
        int(found[1]): lambda file=file: inventory.read_file(  # type: ignore[misc]
            bucket, former.folder, name=file.name, size=file.size, sha256=file.sha256
        )
        for file in manifest.files
        if (found := _PUBLISHED.match(file.name))
    }


def _weights(lora: reading.Lora) -> dict[str, torch.Tensor]:
    """Return what was written, bit for bit: the scale of our own file is the product's."""
    found: dict[str, torch.Tensor] = {}
    for place, module in lora.modules.items():
        matrices = {names.DOWN: module.down, names.UP: module.up, names.MAGNITUDE: module.magnitude}
        found |= {f"{place}.{matrix}.weight": one for matrix, one in matrices.items() if one is not None}
    return found
