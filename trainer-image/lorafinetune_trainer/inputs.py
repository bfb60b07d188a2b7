"""What the training is made of: images, base model, plan and conditioning, checked and brought together.

On a resume the plan and the conditioning are pinned in the head: images and UNet are compared with the plan, and
neither VAE nor text encoders are fetched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lorafinetune.contract.event import EventType, Phase
from lorafinetune.contract.exit_codes import ExitCode
from lorafinetune.contract.head import ConditioningEntry
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.training import Precision
from lorafinetune.storage import errors
from lorafinetune_trainer import planning
from lorafinetune_trainer.base import fetching, supply
from lorafinetune_trainer.base.files import ENCODERS, TRAINED, Files, Part
from lorafinetune_trainer.base.places import Means
from lorafinetune_trainer.conditioning import latents, prompts
from lorafinetune_trainer.conditioning import pinned as conditioning
from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.data import dataset as datasets
from lorafinetune_trainer.data.dataset import Dataset
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

FENCE_SECONDS: Final = 5.0
"""While conditioning is put, the fence is looked at anew after so long: less than what a collection waits for."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that the training starts from, besides the checkpoint."""

    plan: Plan
    samples: Samples
    dataset_digest: str
    files: Files
    accelerator: Accelerator
    remarks: list[str]
    """What may make the bits differ from those of an undisturbed run."""


def gather(wires: Wires, importing: threading.Thread) -> Inputs:
    """Bring everything together; raises Failure for what the user must mend. Joins *importing* before torch is used."""
    config, head = wires.config, wires.checkpoints.head
    pinned = head.conditioning is not None and head.plan is not None

    # The data set first: it is small, and what is wrong with it is told before gigabytes are moved.
    wires.enter(Phase.SCANNING)
    dataset = datasets.scan(config.dataset, wires.open, decoded=not pinned)

    wires.enter(Phase.DOWNLOADING)
    means = Means(wires.open, wires.scratch)
    half = config.training.precision is not Precision.FP32
    files = supply.bring(
        config.base_model,
        TRAINED if pinned else TRAINED | ENCODERS,
        means,
        half=half,
        bucket=wires.bucket,
        digest=head.plan.base_model_digest if head.plan is not None and pinned else None,
        note=wires.reporter.note,
    )
    vae = fetching.fetch_vae(config.base_model, means) if config.base_model.vae and not pinned else Part(files, "vae")
    base_model_digest = files.digest(TRAINED)
    importing.join()

    from lorafinetune_trainer.training import model

    threads = head.plan.threads if head.plan is not None else planning.threads()
    model.be_deterministic(threads)
    mine = planning.make(
        config,
        dataset_digest=dataset.digest,
        base_model_digest=base_model_digest,
        images=len(dataset.images),
        thread_count=threads,
    )
    remarks = planning.check(head.plan, mine) if head.plan is not None else []
    accelerator = model.make_accelerator(config.training.precision)
    if not pinned:
        wires.enter(Phase.CONDITIONING)
        entry = _condition(wires, dataset, files, vae, accelerator.device)
        head = wires.checkpoints.pin(mine, entry)
        model.release()
    assert head.plan is not None
    assert head.conditioning is not None
    wires.enter(Phase.RESUMING)
    samples = _load(wires, head.conditioning)
    return Inputs(head.plan, samples, dataset.digest, files, accelerator, remarks)


def _condition(wires: Wires, dataset: Dataset, files: Files, vae: Part, device: torch.device) -> ConditioningEntry:
    training = wires.config.training
    recipe = conditioning.Recipe(
        resolution=training.resolution,
        flips=training.random_flip,
        vae_digest=vae.digest(),
        encoders_digest=files.digest(ENCODERS - {"vae"}),
    )

    def progress(done: int, total: int) -> None:
        if done == total or done % 10 == 0:
            message = f"{done} of {total} latents and prompts"
            wires.reporter.tell(
                EventType.PROGRESS, wires.ending.standing.step, phase=Phase.CONDITIONING, message=message
            )

    return conditioning.prepare(
        wires.bucket,
        dataset,
        recipe,
        encode_image=lambda: latents.encoder(dataset, vae, recipe, device),
        encode_prompt=lambda: prompts.encoder(prompts.load(files, device)),
        run_uid=wires.config.run.uid,
        attempt=wires.checkpoints.attempt,
        before_put=lambda: wires.checkpoints.check_fence(seconds=FENCE_SECONDS),
        progress=progress,
    )


def _load(wires: Wires, entry: ConditioningEntry) -> Samples:
    try:
        return conditioning.load(wires.bucket, entry)
    except (errors.NotVerified, errors.ObjectMissing, ValueError, KeyError) as error:
        raise Failure(
            ExitCode.FAILED,
            "ConditioningLost",
            f"the run's pinned latents are damaged, so it cannot go on as it began: create it anew ({error})",
        ) from error
