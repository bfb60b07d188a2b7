"""What the training is made of: images, base model, plan and conditioning, checked and brought together.

On a resume the plan and the conditioning are pinned in the head: images and UNet are compared with the plan, and
neither VAE nor text encoders are fetched.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorafinetune.contract import canonical, coherence
from lorafinetune.contract.event import MAX_MESSAGE, EventType, Phase
from lorafinetune.contract.head import ConditioningEntry
from lorafinetune.contract.plan import Plan
from lorafinetune.contract.training import Precision, Prediction, Training
from lorafinetune.storage import errors
from lorafinetune_trainer import fitting, memory, planning
from lorafinetune_trainer.base import fetching, parts, supply
from lorafinetune_trainer.base.files import ENCODERS, TRAINED, Files, Part
from lorafinetune_trainer.base.places import Means
from lorafinetune_trainer.conditioning import added, classimages, latents, prompts, size
from lorafinetune_trainer.conditioning import pinned as conditioning
from lorafinetune_trainer.conditioning.recipe import Recipe
from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.data import buckets, preflight
from lorafinetune_trainer.data import dataset as datasets
from lorafinetune_trainer.data.dataset import Dataset
from lorafinetune_trainer.product import initial as starting
from lorafinetune_trainer.wires import Wires

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that the training starts from, besides the checkpoint."""

    plan: Plan
    samples: Samples
    dataset_digest: str
    files: Files
    accelerator: Accelerator
    initial: bytes | None
    """The LoRA file that the weights begin with, where there is one and no step has been done."""
    obeyed: bool
    """Whether the plan is an earlier attempt's."""
    remarks: list[str]
    """What may make the bits differ from those of an undisturbed run."""


def gather(wires: Wires, importing: threading.Thread, level: str) -> Inputs:
    """Bring everything together; raises Failure for what the user must mend. Joins *importing* before torch is used.

    *level* names the vector instructions that the CPU is held to.
    """
    config, head = wires.config, wires.checkpoints.head
    pinned = head.conditioning is not None and head.plan is not None

    # The data set first: it is small, and what is wrong with it is told before gigabytes are moved.
    dataset, classes, wanted = _scan(wires, decoded=not pinned)
    if not pinned:
        planning.check_warm_up(config.training, dataset.shown)

    wires.enter(Phase.DOWNLOADING)
    first = starting.fetch(config.training.lora.init_from, wires.open) if not head.checkpoints else None
    means = Means(wires.open, wires.scratch)
    half = config.training.precision is not Precision.FP32
    trained = TRAINED | (ENCODERS - {"vae"} if config.training.lora.text_encoder else frozenset())
    files = supply.bring(
        config.base_model,
        trained if pinned else TRAINED | ENCODERS,
        means,
        half=half,
        bucket=wires.bucket,
        digest=head.plan.base_model_digest if head.plan is not None and pinned else None,
        note=wires.reporter.note,
    )
    vae = fetching.fetch_vae(config.base_model, means) if config.base_model.vae and not pinned else Part(files, "vae")
    base_model_digest = files.digest(trained)
    importing.join()
    if first is not None:
        starting.check(first, config.training, int(files.json("unet/config.json")["layers_per_block"]))

    from lorafinetune_trainer.training import compiling, model

    threads = head.plan.threads if head.plan is not None else planning.threads()
    model.be_deterministic(threads)
    if head.plan.compiled if head.plan is not None else config.training.compile:
        compiling.check()
    images = [*dataset.images, *(classes.images if classes is not None else ())]
    largest = 0 if pinned else max(image.size.width * image.size.height for image in images)
    split = (
        head.plan.micro_batch
        if head.plan is not None
        else fitting.choose(config, files, samples=wanted, largest=largest)
    )
    mine = planning.make(
        config,
        dataset_digest=dataset.digest,
        class_digest=classes.digest if classes is not None else classimages.digest(config, base_model_digest),
        base_model_digest=base_model_digest,
        initial_lora_digest=canonical.sha256(first) if first is not None else None,
        images=dataset.shown,
        thread_count=threads,
        level=level,
        micro_batch=split,
        base=_base(files, config.training),
    )
    remarks = planning.check(head.plan, mine) if head.plan is not None else []
    accelerator = model.make_accelerator(config.training.precision)
    if not pinned:
        model.scheduler(parts.scheduler_config(files), config.training)  # what is wrong with it is told before it costs
        _judge(wires, dataset, classes, files)
        if config.dataset.makes_class_images:
            digests = [base_model_digest, vae.digest(), files.digest(ENCODERS - {"vae"})]
            classes = classimages.make(wires, files, vae, accelerator.device, digests=digests)
            model.release()
        wires.enter(Phase.CONDITIONING)
        entry = _condition(wires, dataset, classes, files, vae=vae, device=accelerator.device)
        head = wires.checkpoints.pin(mine, entry)
        model.release()
    assert head.plan is not None
    assert head.conditioning is not None
    wires.enter(Phase.RESUMING)
    kept = _load(wires, head.conditioning)
    samples = added.encoded(wires, kept, means, accelerator.device)
    if samples is not kept:
        model.release()
    return Inputs(head.plan, samples, dataset.digest, files, accelerator, first, pinned, remarks)


def _scan(wires: Wires, *, decoded: bool) -> tuple[Dataset, Dataset | None, int]:
    """Return the images that are learnt from, and those of the class where the spec names a place that holds some.

    Where they are *decoded* what is odd about them is told: nothing has cost GPU time yet.
    """
    wires.enter(Phase.SCANNING)
    source, training, note = wires.config.dataset, wires.config.training, wires.reporter.note
    dataset = datasets.scan(datasets.instances(source), wires.open, decoded=decoded, note=note)
    asked = datasets.classes(source)
    classes = datasets.scan(asked, wires.open, decoded=decoded, note=note) if asked is not None else None
    if not decoded:
        return dataset, classes, 0
    summaries, remarks = [], list(coherence.oddities(wires.config))
    for found, what, which in ((dataset, "image", ""), (classes, "class image", "dataset.classSource: ")):
        if found is not None:
            frames = {
                image.name: buckets.frame(image.size, training.resolution, square=not training.aspect_buckets)
                for image in found.images
            }
            if strips := preflight.strips(frames):
                raise preflight.refuse(strips)
            summaries.append(preflight.summary(found, frames, what))
            remarks += [which + one for one in (*found.remarks, *preflight.odd_shapes(frames))]
    story = "; ".join([*summaries, *remarks])
    wires.enter(Phase.SCANNING, story)
    if len(story) > MAX_MESSAGE:  # the event has been cut
        for remark in remarks:
            note(remark)
    wanted = size.host_bytes(Recipe(training, "", ""), dataset, classes)
    if lacking := size.short(training, wanted, memory.host()):
        raise lacking
    return dataset, classes, wanted


def _base(files: Files, training: Training) -> planning.Base:
    """Return what the product takes from the base model, as the libraries understand its configs."""
    noise = parts.scheduler_config(files)
    return planning.Base(
        layers_per_block=int(files.json("unet/config.json")["layers_per_block"]),
        prediction=str(training.prediction or noise.get("prediction_type", Prediction.EPSILON)),
        zero_snr=training.zero_terminal_snr or bool(noise.get("rescale_betas_zero_snr", False)),
    )


def _judge(wires: Wires, dataset: Dataset, classes: Dataset | None, files: Files) -> None:
    """Refuse captions that are too long, and tell what is odd about others, whether or not their encoders are trained.

    Before class images or latents cost GPU time.
    """
    source, pictures, encoders = wires.config.dataset, wires.config.validation, prompts.words(files)
    images = [*dataset.images, *(classes.images if classes is not None else ())]
    said = {image.caption: f"the caption of {image.name}" for image in images}
    fields = {"dataset.instancePrompt": source.instance_prompt, "dataset.classPrompt": source.class_prompt}
    if pictures is not None:
        fields |= {f"validation.prompts[{number}]": one for number, one in enumerate(pictures.prompts)}
        fields["validation.negativePrompt"] = pictures.negative_prompt
    prompts.check_lengths(encoders, said | {words.strip(): name for name, words in fields.items() if words})
    for remark in prompts.remarks(encoders, (image.caption for image in dataset.images)):
        wires.reporter.note(remark)


def _condition(
    wires: Wires,
    dataset: Dataset,
    classes: Dataset | None,
    files: Files,
    *,
    vae: Part,
    device: torch.device,
) -> ConditioningEntry:
    config = wires.config
    recipe = Recipe(config.training, vae.digest(), files.digest(ENCODERS - {"vae"}))
    asked = config.validation

    def progress(done: int, total: int) -> None:
        if done == total or done % 10 == 0:
            wires.reporter.tell(
                EventType.PROGRESS,
                wires.ending.standing.step,
                phase=Phase.CONDITIONING,
                done=done,
                total=total,
                message=f"{done} of {total} latents and prompts",
            )

    return conditioning.prepare(
        wires.bucket,
        dataset,
        recipe,
        classes=classes,
        validation=[*asked.prompts, asked.negative_prompt] if asked is not None else [],
        encode_cuts=lambda: latents.encoder(vae, device, flips=config.training.random_flip),
        encode_prompts=lambda: prompts.encoder(prompts.load(files, device)),
        run_uid=config.run.uid,
        attempt=wires.checkpoints.attempt,
        before_put=wires.checkpoints.before_put,
        progress=progress,
    )


def _load(wires: Wires, entry: ConditioningEntry) -> Samples:
    try:
        return conditioning.load(wires.bucket, entry)
    except errors.OtherVersion:
        raise
    except (errors.NotVerified, errors.ObjectMissing, ValueError, KeyError) as error:
        raise conditioning.lost(error) from error
