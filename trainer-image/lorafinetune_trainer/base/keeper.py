"""Puts what a resume needs of a hub's model into the run's prefix while the training runs, and gets in nobody's way.

One thread, one object at a time. It waits while checkpoints are saved, and gives up the object that it is sending for
them; it stops at SIGTERM and before the artifact is published. Whatever goes wrong costs a later attempt time, and
this one nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.head import Fenced, HeadLost
from lorafinetune.contract.plan import Plan
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket
from lorafinetune_trainer.base import blocks, kept, supply
from lorafinetune_trainer.base.blocks import Block
from lorafinetune_trainer.base.files import ENCODERS, TRAINED, Files
from lorafinetune_trainer.wires import Wires

LOOK: Final = 0.2
"""Seconds between two looks whether the way is free."""
TRIES: Final = 10
"""Failed requests after which this attempt leaves it to the next."""
PAUSE: Final = 15.0
STOP_SECONDS: Final = 10.0


class _Interrupted(BaseException):
    """The object that is being sent must wait. No Exception: whoever tries again after errors must not after this."""


class Keeper:
    """One attempt's upload of its base model."""

    def __init__(
        self,
        bucket: Bucket,
        files: Files,
        parts: Collection[str],
        digest: str,
        *,
        run_uid: str,
        before_put: Callable[[], None],
        busy: Callable[[], bool],
        noticed: threading.Event,
        note: Callable[[str], None],
    ) -> None:
        """*bucket* stands on the run's prefix; *digest* is the plan's, of the base model.

        *before_put* raises where nothing may be put any more; *busy* tells whether a checkpoint is under way;
        *noticed* is set at SIGTERM.
        """
        self._bucket, self._files, self._parts, self._digest = bucket, files, parts, digest
        self._run_uid = run_uid
        self._before_put, self._busy, self._noticed, self._note = before_put, busy, noticed, note
        self._stopped = threading.Event()
        self._failed = 0
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Put nothing more, and wait until nothing is being put."""
        self._stopped.set()
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        try:
            there = {one.key: one.size for one in self._bucket.walk(layout.BASE)}
            if kept.manifest_key(self._digest) in there:
                return
            model = kept.describe(self._files, self._parts, self._run_uid)
            count = 0
            for one in model.blocks:
                block, key = Block(one.name, one.first, one.end), kept.block_key(one.sha256)
                if there.get(key) != block.size:
                    self._put(key, blocks.read(self._files.folder, block), one.sha256)
                    there[key] = block.size
                    count += block.size
            body = canonical.encode(model.to_json())
            self._put(kept.manifest_key(self._digest), body, canonical.sha256(body))
            self._note(f"base model: {count} bytes kept in the run's bucket for later attempts")
        except _Interrupted:
            return
        except (errors.StorageError, Fenced, HeadLost, OSError, MemoryError) as error:
            self._note(f"the base model could not be kept in the run's bucket, later attempts fetch it anew: {error}")

    def _put(self, key: str, body: bytes, sha256: str) -> None:
        while True:
            while self._busy() and not self._over:
                self._stopped.wait(LOOK)
            self._go_on(0, wait_for_checkpoints=False)
            self._before_put()
            try:
                self._bucket.put(key, body, sha256=sha256, watch=self._go_on)
            except _Interrupted:
                if self._over:
                    raise
            except errors.Unreachable:
                self._failed += 1
                if self._failed >= TRIES:
                    raise
                self._stopped.wait(PAUSE)
            else:
                return

    @property
    def _over(self) -> bool:
        return self._stopped.is_set() or self._noticed.is_set()

    def _go_on(self, _: int, *, wait_for_checkpoints: bool = True) -> None:
        if self._over or (wait_for_checkpoints and self._busy()):
            raise _Interrupted


@contextlib.contextmanager
def keeping(wires: Wires, files: Files, plan: Plan, *, busy: Callable[[], bool]) -> Iterator[None]:
    """Keep the base model while the block runs, where it comes from a hub; *busy* tells of checkpoints under way."""
    source = wires.config.base_model
    if not supply.keeps(source):
        yield
        return
    wanted = set(TRAINED)
    if wires.config.training.lora.text_encoder:
        wanted |= ENCODERS - {"vae"}
    if wires.config.validation is not None and source.vae is None:
        wanted.add("vae")
    keeper = Keeper(
        wires.bucket,
        files,
        wanted & files.parts,  # an attempt that resumed may not have all of them
        plan.base_model_digest,
        run_uid=wires.config.run.uid,
        before_put=wires.checkpoints.before_put,
        busy=busy,
        noticed=wires.ending.noticed,
        note=wires.reporter.note,
    )
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()
