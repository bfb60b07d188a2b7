"""The run config: all that an attempt is told, in one literal environment variable, with no secret in it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.model import Model
from lorafinetune.contract.training import MAX_STEPS, Schedule, Training

ENV_RUN_CONFIG: Final = "LORAFINETUNE_RUN_CONFIG"
ENV_POD_UID: Final = "LORAFINETUNE_POD_UID"
ENV_TERMINATION_LOG: Final = "LORAFINETUNE_TERMINATION_LOG"
MAX_RUN_CONFIG_BYTES: Final = 64 * 1024

STORAGE_CREDENTIALS: Final = "/var/run/secrets/lorafinetune.io/storage"
HUB_CREDENTIALS: Final = "/var/run/secrets/lorafinetune.io/hub"
WEBHOOK_TOKEN: Final = "/var/run/secrets/lorafinetune.io/webhook"
SCRATCH: Final = "/scratch"
TERMINATION_LOG: Final = "/dev/termination-log"

KEY_ID: Final = "AWS_ACCESS_KEY_ID"
SECRET_KEY: Final = "AWS_SECRET_ACCESS_KEY"
SESSION_TOKEN: Final = "AWS_SESSION_TOKEN"
HUB_TOKEN: Final = "HF_TOKEN"

MAX_INTERMEDIATE: Final = 64
"""LoRAs of chosen steps that one run keeps."""
MAX_PICTURED: Final = 64
"""Steps of one run that get validation pictures."""
CLASS_IMAGES: Final = 100
"""Class images that are made where their number is not given."""

Mathematics = dict[str, str | int | float | bool | None]


RunName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._-]+$")]
"""Part of the run's prefix. Kubernetes is stricter."""


class Run(Model):
    """Which run this is."""

    namespace: RunName = "default"
    name: RunName
    uid: Annotated[RunName, Field(max_length=64)]


class BaseModelSource(Model):
    """Where the base model comes from."""

    source: str
    """``hf://owner/name``, ``s3://bucket/prefix/`` or a folder, each of which holds a diffusers SDXL folder; or one
    ``.safetensors`` file: ``hf://owner/name/file``, ``s3://bucket/key`` or a path."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    vae: str | None = None
    """Another VAE, from the same kinds of places."""
    hub_credentials: str | None = None
    """Folder that holds ``HF_TOKEN``."""
    cache: bool = True
    """Keep what a resume needs of a hub's model in the run's own prefix, so that no attempt fetches it twice."""


class Dataset(Model):
    """Where the training images come from."""

    source: str
    """``s3://bucket/prefix/`` or a folder."""
    instance_prompt: str | None = None
    """The caption of every image that has no caption file of its own."""
    class_source: str | None = None
    """``s3://bucket/prefix/`` or a folder with images of the class, for prior preservation."""
    class_prompt: str | None = None
    """The caption of class images without one, and the prompt of those that are made."""
    class_images: Annotated[int, Field(ge=1, le=2000)] | None = None
    """How many class images to make with the base model, where ``class_source`` is absent."""
    keep_class_images: bool = False
    """Whether those are published with the artifact."""

    @property
    def makes_class_images(self) -> int:
        """Number of class images that the run makes itself."""
        if self.class_source is not None or self.class_prompt is None:
            return 0
        return self.class_images or CLASS_IMAGES


class KeepIntermediate(Model):
    """Which steps' LoRAs are kept beside the artifact."""

    steps: Annotated[list[Annotated[int, Field(ge=1, le=MAX_STEPS)]], Field(max_length=MAX_INTERMEDIATE)] = Field(
        default_factory=list
    )
    every_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None

    def keeps(self, step: int) -> bool:
        """Whether the LoRA of *step* is kept."""
        return step in self.steps or (self.every_steps is not None and step % self.every_steps == 0)


class Checkpointing(Model):
    """How often to commit, and how much to keep. May change at any time."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Absent = as often as pays, by what a save costs and how long attempts last (see ``cadence``)."""
    lifetime_seconds: Annotated[float, Field(gt=0)] | None = None
    """Mean seconds between two preemptions where the attempt runs, as the operator has seen it; absent = an hour."""
    keep: Annotated[int, Field(ge=2, le=100)] = 2
    keep_intermediate: KeepIntermediate | None = None


class Validation(Model):
    """Pictures that show how the training goes, and are no part of its mathematics."""

    prompts: Annotated[list[str], Field(min_length=1, max_length=8)]
    """What to make pictures of: one picture for each prompt in each row."""
    negative_prompt: str = ""
    """What the pictures should not show."""
    every_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 100
    """Optimizer steps between two rows of pictures; the last step always has one. At most 64 rows."""
    inference_steps: Annotated[int, Field(ge=1, le=100)] = 25
    """Denoising steps of one picture."""
    guidance: Annotated[float, Field(ge=1, le=30)] = 5.0
    """How closely a picture follows its prompt."""
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """The noise that pictures begin with follows from this number and the prompt's place: each row begins alike."""


class Metrics(Model):
    """What is written down besides events. JSON lines always are."""

    tensor_board: bool = False
    """Write TensorBoard files too: loss, learning rate, gradient norm, speed and memory over all attempts. The same
    figures always stand as JSON lines beside the artifact."""


class Storage(Model):
    """The bucket of the run."""

    uri: str
    """``s3://bucket/prefix/``: the run's own prefix is derived from it."""
    endpoint: str | None = None
    region: str | None = None
    credentials: str | None = None
    """Folder that holds ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY`` (and, where used, ``AWS_SESSION_TOKEN``),
    one file each; absent = the environment's own identity."""
    unsafe_no_fencing: bool = False


class Webhook(Model):
    """Where events go, and how the pod proves who it is."""

    url: str
    """``https://host:port``; events are POSTed to its ``/v1/events``."""
    ca: str | None = None
    """PEM of the authority that signed the receiver's certificate; absent = the system's."""
    token: str
    """File that holds the projected token; read anew for each request."""


class RunConfig(Model):
    """All that an attempt is told."""

    version: Literal[1] = 1
    run: Run
    base_model: BaseModelSource
    dataset: Dataset
    training: Training = Field(default_factory=Training)
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)
    validation: Validation | None = None
    """Absent = no pictures."""
    metrics: Metrics = Field(default_factory=Metrics)
    storage: Storage
    webhook: Webhook | None = None
    """Absent when the trainer runs by hand: it then tells its terminal only."""
    scratch: str | None = None
    """Folder for downloads; absent = a temporary one."""
    publish: bool = False
    """Train nothing: publish the LoRA of the newest checkpoint as the artifact, and end."""
    notice_seconds: Annotated[float, Field(gt=0)] = 25.0
    """Time between SIGTERM and SIGKILL that the trainer may count on."""

    @property
    def prefix(self) -> layout.Location:
        """The run's own prefix in its bucket."""
        return layout.run_prefix(self.storage.uri, self.run.namespace, self.run.name, self.run.uid)

    def mathematics(self) -> Mathematics:
        """Return the fields that change the LoRA's bytes, flattened; not cadence, keep, names and places.

        ``steps`` belongs to them only where the schedule looks at the end, for elsewhere it may be raised. Fields that
        are absent, or have no effect beside the others, are left out.
        """
        training = self.training
        found: Mathematics = {}
        _flatten(training.to_json(), "training.", found)
        found["training.learningRate"] = training.peak_rate
        found["training.lora.alpha"] = training.lora.full_alpha
        del found["training.lora.dropout"], found["training.batchSize"], found["training.gradientAccumulation"]
        found["training.imagesPerStep"] = training.images_per_step
        idle = {"training.microBatch", "training.lora.initFrom", "training.compile"}  # the plan has what became of them
        if not training.looks_at_the_end:
            idle.add("training.steps")
        if not training.lora.text_encoder:
            idle.add("training.textEncoderLearningRate")
        if training.schedule is not Schedule.COSINE_WITH_RESTARTS:
            idle.add("training.scheduleCycles")
        if training.schedule is not Schedule.POLYNOMIAL:
            idle.add("training.schedulePower")
        if not training.captions.shuffle:
            idle.add("training.captions.keepTokens")
        if self.dataset.class_source is None and self.dataset.class_prompt is None:
            idle.add("training.priorLossWeight")
        found["dataset.instancePrompt"] = self.dataset.instance_prompt
        found["dataset.classPrompt"] = self.dataset.class_prompt
        found["dataset.classImages"] = self.dataset.makes_class_images or None
        return {name: value for name, value in found.items() if name not in idle and value is not None}

    def digest(self) -> str:
        """SHA-256 over :meth:`mathematics`."""
        return canonical.digest(self.mathematics())


def _flatten(members: dict[str, Any], prefix: str, found: Mathematics) -> None:
    for name, value in members.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{name}.", found)
        else:
            found[prefix + name] = value
