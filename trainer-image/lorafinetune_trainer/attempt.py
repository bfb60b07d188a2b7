"""One attempt from claim to artifact: the order in which the rooms of the trainer are entered."""

from __future__ import annotations

import gc
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lorafinetune.contract import layout
from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import CheckpointEntry
from lorafinetune.contract.manifest import SaveReason
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import KEY_ID, SECRET_KEY, SESSION_TOKEN, RunConfig
from lorafinetune.contract.training import Precision
from lorafinetune.storage import errors
from lorafinetune.storage.bucket import Bucket, Credentials
from lorafinetune_trainer import basemodel, conditioning, dataset, planning
from lorafinetune_trainer.checkpoints import Checkpoints
from lorafinetune_trainer.ending import Ending
from lorafinetune_trainer.failure import Failure, invalid
from lorafinetune_trainer.report import Reporter

if TYPE_CHECKING:
    from lorafinetune_trainer.loop import Loop

EXPORT_GRACE: Final = 5.0
"""Seconds for which SIGTERM waits while the artifact is being published."""


@dataclass(slots=True)
class Attempt:
    """One attempt's wiring."""

    config: RunConfig
    ending: Ending
    number: int | None
    pod_uid: str
    resume_from: str | None
    _bucket: Bucket | None = None
    _reporter: Reporter | None = None
    _remarks: list[str] = field(default_factory=list)

    def run(self) -> ExitCode:
        """Do all there is to do; return FINISHED, or raise what ended it."""
        config, standing = self.config, self.ending.standing
        standing.phase = Phase.STARTING
        root = Bucket(
            config.prefix,
            endpoint=config.storage.endpoint,
            region=config.storage.region,
            credentials=read_credentials(config.storage.credentials),
        )
        self._bucket = root
        hasty = max(2.0, config.notice_seconds / 4)
        checkpoints = Checkpoints(root, root.hasty(hasty), config, self.pod_uid)
        head = checkpoints.claim(self.number, expect_head=self.resume_from is not None)
        reporter = Reporter(
            run_uid=config.run.uid,
            attempt=checkpoints.attempt,
            webhook=config.webhook,
            on_stop=lambda reason, message: self.ending.fail(Failure(ExitCode.FENCED, reason, message)),
        )
        self._reporter = self.ending.reporter = reporter
        standing.step = standing.durable_step = head.newest.step if head.newest is not None else 0
        reporter.tell(
            EventType.STARTED,
            standing.step,
            phase=Phase.STARTING,
            message=f"attempt {checkpoints.attempt} "
            + (f"resumes from {head.newest.folder}" if head.newest is not None else "begins at step 0"),
        )
        if head.artifact is not None and head.artifact.step >= config.training.steps:
            reporter.tell(EventType.FINISHED, head.artifact.step, phase=Phase.EXPORTING, artifact=head.artifact)
            return ExitCode.FINISHED
        with tempfile.TemporaryDirectory(prefix="lorafinetune-", dir=config.scratch) as scratch:
            return self._train(checkpoints, reporter, Path(scratch))

    def _train(self, checkpoints: Checkpoints, reporter: Reporter, scratch: Path) -> ExitCode:
        config, ending = self.config, self.ending
        training = config.training
        resumed = checkpoints.head.conditioning is not None and checkpoints.head.plan is not None

        self._enter(Phase.DOWNLOADING)
        half = training.precision is not Precision.FP32
        parts = basemodel.TRAINED if resumed else basemodel.TRAINED | basemodel.ENCODERS
        files = basemodel.fetch(config.base_model, parts, bucket=self._open, scratch=scratch, half=half)
        vae = None
        if config.base_model.vae is not None and not resumed:
            vae = basemodel.fetch_vae(config.base_model, bucket=self._open, scratch=scratch)

        self._enter(Phase.SCANNING)
        images = dataset.scan(config.dataset, self._open, decoded=not resumed)

        # Only now what takes seconds to import: bad input has been told by here.
        from lorafinetune_trainer import model as models
        from lorafinetune_trainer.loop import Loop

        thread_count = checkpoints.head.plan.threads if checkpoints.head.plan is not None else planning.threads()
        models.be_deterministic(thread_count)
        mine = planning.make(
            config,
            dataset_digest=images.digest,
            base_model_digest=files.digest(basemodel.TRAINED),
            thread_count=thread_count,
        )
        if checkpoints.head.plan is not None:
            self._remarks += planning.check(checkpoints.head.plan, mine)
        accelerator = models.make_accelerator(training.precision)
        if checkpoints.head.conditioning is None:
            self._enter(Phase.CONDITIONING)
            entry = self._condition(images, files, vae, accelerator.device, checkpoints)
            checkpoints.pin(mine, entry)
        plan, pinned = checkpoints.head.plan, checkpoints.head.conditioning
        assert plan is not None
        assert pinned is not None

        self._enter(Phase.RESUMING)
        try:
            samples = conditioning.load(self._bucket_of_run, pinned)
        except (errors.NotVerified, errors.ObjectMissing) as error:
            raise Failure(
                ExitCode.FAILED,
                "ConditioningLost",
                f"the run's pinned latents are damaged, so it cannot go on as it began: create it anew ({error})",
            ) from error
        model = models.load(files, training, accelerator.device)
        loop = Loop(model, samples, training, dataset_digest=images.digest, accelerator=accelerator)
        entry_resumed = self._resume(checkpoints, loop)
        # What lives now lives on: the collector need not walk through it again, which stalls the saver's thread.
        gc.collect()
        gc.freeze()

        from lorafinetune_trainer.saver import Saver

        saver = Saver(checkpoints, take=loop.snapshot, ending=ending, reporter=reporter)
        ending.rescue = saver.rescue
        self._enter(Phase.TRAINING, message=self._story(checkpoints, entry_resumed))
        every = config.checkpoint.every_steps

        def on_step(progress: Any) -> None:
            ending.standing.step = progress.step
            reporter.tell(
                EventType.PROGRESS,
                progress.step,
                phase=Phase.TRAINING,
                loss=progress.loss,
                learning_rate=progress.learning_rate,
                seconds_per_step=progress.seconds_per_step,
            )
            if progress.step % every == 0 and progress.step < training.steps:
                saver.offer(loop.snapshot(), SaveReason.PERIODIC)

        loop.train(on_step)
        return self._publish(checkpoints, loop, saver, plan, len(images.images), model)

    def _condition(
        self,
        images: dataset.Dataset,
        files: basemodel.Files,
        vae: basemodel.Files | None,
        device: Any,
        checkpoints: Checkpoints,
    ) -> Any:
        part = "vae"
        if vae is not None and not vae.names[0].startswith("vae/"):
            part = ""
        source = vae or files
        recipe = conditioning.Recipe(
            resolution=self.config.training.resolution,
            flips=self.config.training.random_flip,
            vae_digest=source.digest({"vae"} if part else set(source.names)),
            encoders_digest=files.digest(basemodel.ENCODERS - {"vae"}),
        )
        reporter, standing = self._reporter_of_run, self.ending.standing

        def progress(done: int, total: int) -> None:
            if done == total or done % 10 == 0:
                reporter.tell(
                    EventType.PROGRESS, standing.step, phase=Phase.CONDITIONING, message=f"{done} of {total} latents and prompts"
                )

        return conditioning.prepare(
            self._bucket_of_run,
            images,
            recipe,
            encode_image=lambda: conditioning.image_encoder(images, source, part, recipe, device),
            encode_prompt=lambda: conditioning.prompt_encoder(files, device, reporter.note),
            run_uid=self.config.run.uid,
            attempt=checkpoints.attempt,
            progress=progress,
        )

    def _resume(self, checkpoints: Checkpoints, loop: Loop) -> CheckpointEntry | None:
        """Put *loop* where the newest good checkpoint stands; return that checkpoint, or None at step 0."""
        standing = self.ending.standing
        for entry, snapshot in checkpoints.restore():
            try:
                loop.restore(snapshot)
            except (ValueError, KeyError) as error:
                checkpoints.reject(entry, str(error))
                continue
            if (loop.step, loop.updates) != (entry.step, snapshot.updates):
                raise Failure(ExitCode.FAILED, "ResumeFailed", f"{entry.folder} led to step {loop.step}: report this")
            standing.step = standing.durable_step = entry.step
            if entry.step > self.config.training.steps:
                raise invalid(
                    "PlanMismatch", f"training.steps is {self.config.training.steps}, but step {entry.step} has been done"
                )
            return entry
        standing.step = standing.durable_step = 0
        return None

    def _story(self, checkpoints: Checkpoints, entry: CheckpointEntry | None) -> str:
        words = [f"resumed at step {entry.step} from {entry.folder}" if entry is not None else "training from step 0"]
        words += [f"checkpoint {name} was rejected: {why}" for name, why in checkpoints.rejected.items()]
        if self._remarks:
            words.append("the bytes may differ from an undisturbed run's: " + ", ".join(self._remarks))
        return "; ".join(words)

    def _publish(self, checkpoints: Checkpoints, loop: Loop, saver: Any, plan: Plan, images: int, model: Any) -> ExitCode:
        """Make the last state durable, then the artifact; from here on SIGTERM waits a little."""
        self._enter(Phase.SAVING)
        if self.ending.standing.durable_step < loop.step:
            saver.offer(loop.snapshot(), SaveReason.FINAL)
        saver.drain()

        from lorafinetune_trainer import export

        self.ending.grace = EXPORT_GRACE
        self._enter(Phase.EXPORTING)
        product = export.Product(
            config=self.config,
            plan=plan,
            images=images,
            updates=loop.updates,
            layers_per_block=int(model.unet.config.layers_per_block),
        )
        provenance = {"device": plan.device, **{f"library.{name}": one for name, one in planning.libraries().items()}}
        run = self.config.run
        story = f"\nRun {run.namespace}/{run.name} ({run.uid}), finished by attempt {checkpoints.attempt}.\n"
        entry = checkpoints.publish(
            loop.step, loop.updates, export.files(model.weights, product, story=story), provenance
        )
        self._reporter_of_run.tell(EventType.FINISHED, loop.step, phase=Phase.EXPORTING, artifact=entry)
        return ExitCode.FINISHED

    def _enter(self, phase: Phase, message: str = "") -> None:
        standing = self.ending.standing
        standing.phase = phase
        self._reporter_of_run.tell(EventType.PROGRESS, standing.step, phase=phase, message=message)

    def _open(self, location: layout.Location) -> Bucket:
        return self._bucket_of_run.at(location)

    @property
    def _bucket_of_run(self) -> Bucket:
        assert self._bucket is not None
        return self._bucket

    @property
    def _reporter_of_run(self) -> Reporter:
        assert self._reporter is not None
        return self._reporter


def read_credentials(folder: str | None) -> Credentials | None:
    """Return the keys that lie in the mounted Secret, one file each; None for the environment's own identity."""
    if folder is None:
        return None
    read: Callable[[str], str] = lambda name: (Path(folder) / name).read_text().strip()  # noqa: E731
    try:
        token = read(SESSION_TOKEN) if (Path(folder) / SESSION_TOKEN).exists() else None
        return Credentials(read(KEY_ID), read(SECRET_KEY), token or None)
    except OSError as error:
        raise invalid(
            "InvalidCredentials",
            f"storage.credentialsSecret must hold {KEY_ID} and {SECRET_KEY}: {Path(str(error.filename)).name} is missing",
        ) from error


def random_pod_uid() -> str:
    """Return an identity for an attempt that no pod runs."""
    return str(uuid.uuid4())
