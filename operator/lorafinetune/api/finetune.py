"""LoRAFineTune: one run, as its user writes it (spec); :mod:`lorafinetune.api.status` is what its user reads.

The API server refuses unknown fields; the operator, which reads what was stored, ignores them, so that it can be rolled
back under definitions that know more than it does. ``training`` alone is closed here too: mathematics is never guessed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from lorafinetune.api.words import listed, rule, ruled, worded
from lorafinetune.contract.model import OpenModel
from lorafinetune.contract.training import Training

BUCKET = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
FOLDER = r"(/[^/?#\x00-\x1f]+)"
STORAGE_URI = rf"^{BUCKET}(/[A-Za-z0-9!_.*'()-]+)*/?$"
DATASET_SOURCE = rf"^({BUCKET}{FOLDER}*/?|{FOLDER}+/?)$"
HUB_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MODEL_SOURCE = rf"^(hf://{HUB_PART}/{HUB_PART}|{BUCKET}{FOLDER}+/?|{FOLDER}+/?)$"
ENDPOINT = r"^https?://([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$"
NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

NO_DOTS = rule(
    "!self.split('/').exists(part, part == '.' || part == '..')",
    "write the path out: parts that are . or .. mean different places to different stores",
)
NAME_SENTENCE = (
    "must be the name of a Kubernetes object: lower-case letters, digits, - and ., beginning and ending with a letter "
    "or digit"
)
MODEL_SENTENCE = (
    "must be hf://owner/name (a diffusers model on the Hugging Face hub), s3://bucket/prefix/ or an absolute folder of "
    "the trainer's image such as /models/sdxl"
)

SecretName = Annotated[str, Field(max_length=253, pattern=NAME, json_schema_extra=worded(NAME_SENTENCE))]
PoolName = Annotated[str, Field(max_length=63, pattern=NAME, json_schema_extra=worded(NAME_SENTENCE))]
ModelSource = Annotated[
    str,
    Field(max_length=1024, pattern=MODEL_SOURCE, json_schema_extra=worded(MODEL_SENTENCE, NO_DOTS)),
]


def _not_inside(member: str, taken_for: str) -> dict[str, str]:
    """Return the rule that the run must not write where *member* is read from."""
    folder = f'(self.{member}.endsWith("/") ? self.{member} : self.{member} + "/")'
    return rule(
        f'!self.{member}.startsWith("s3://") || !(self.storage.uri + "/").startsWith({folder})',
        f"spec.storage.uri lies inside spec.{member}, so the run's own files would be taken for {taken_for}: "
        "choose a prefix beside it, for example s3://bucket/loras/",
        field_path=".storage.uri",
    )


class BaseModelSpec(OpenModel):
    """The SDXL model that the LoRA is trained on."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                '!has(self.revision) || self.source.startsWith("hf://")',
                "spec.baseModel.revision only goes with an hf:// source: remove it, or let source name a model on the "
                "Hugging Face hub",
                field_path=".revision",
            ),
            rule(
                '!has(self.credentialsSecret) || self.source.startsWith("hf://") || '
                '(has(self.vae) && self.vae.startsWith("hf://"))',
                "spec.baseModel.credentialsSecret is for gated hf:// models: remove it; s3:// sources are read with "
                "spec.storage.credentialsSecret",
                field_path=".credentialsSecret",
            ),
        )
    )

    source: ModelSource
    """Where a diffusers SDXL folder lies: hf://owner/name on the Hugging Face hub, s3://bucket/prefix/ in the run's
    object store, or a folder of the trainer's image such as /models/sdxl."""
    revision: (
        Annotated[
            str,
            Field(
                max_length=128,
                pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
                json_schema_extra=worded("must be a commit, tag or branch, such as main or a commit's 40 hex digits"),
            ),
        ]
        | None
    ) = None
    """Commit, tag or branch, for hf:// sources. A commit makes the run repeatable. Absent = the default branch."""
    vae: ModelSource | None = None
    """Another VAE than the model's own, from the same kinds of places, for example
    hf://madebyollin/sdxl-vae-fp16-fix. Absent = the model's own."""
    credentials_secret: SecretName | None = None
    """Secret in the run's namespace with the key HF_TOKEN, for gated models. It must carry the label
    lorafinetune.io/storage: "true"."""


class DatasetSpec(OpenModel):
    """The training images."""

    source: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=DATASET_SOURCE,
            json_schema_extra=worded(
                "must be s3://bucket/prefix/ (in the run's object store) or an absolute folder of the trainer's image "
                "such as /data/images",
                NO_DOTS,
            ),
        ),
    ]
    """Where the images lie: s3://bucket/prefix/ in the run's object store, or a folder of the trainer's image. A file
    beside an image, of the same name but ending in .txt or .caption, is its caption."""
    instance_prompt: (
        Annotated[
            str,
            Field(
                max_length=2048,
                pattern=r"\S",
                json_schema_extra=worded("must hold words: the caption of images without one, or remove the field"),
            ),
        ]
        | None
    ) = None
    """Caption of every image that has no caption file, for example "photo of timberdog". Absent = every image needs a
    caption file."""


class CheckpointSpec(OpenModel):
    """How often training state is committed. May change at any time; a running attempt keeps what it has."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Optimizer steps between two checkpoints: at most this much is lost when a node goes without notice."""
    keep: Annotated[int, Field(ge=2, le=100)] = 2
    """Newest checkpoints that are kept while the run lives. Two at least, so that a damaged one has a fallback."""


class OnDelete(StrEnum):
    """What deleting the run leaves in the bucket."""

    KEEP_ARTIFACT = "KeepArtifact"
    DELETE_ALL = "DeleteAll"


class StorageSpec(OpenModel):
    """The S3-compatible bucket that holds checkpoints and the artifact."""

    uri: Annotated[
        str,
        Field(
            max_length=512,
            pattern=STORAGE_URI,
            json_schema_extra=worded(
                "must be s3://bucket/prefix/: a bucket name of 3 to 63 lower-case letters, digits, - and ., and a "
                "prefix of letters, digits and !_.*'()-",
                NO_DOTS,
            ),
        ),
    ]
    """Bucket and prefix, s3://bucket/prefix/. The run writes below <uri>/<namespace>/<name>-<first 8 of uid>/ only."""
    endpoint: (
        Annotated[
            str,
            Field(
                max_length=512,
                pattern=ENDPOINT,
                json_schema_extra=worded(
                    "must be the URL of the S3 service, https://host or https://host:port, without user, path or "
                    "query; bucket and prefix belong into spec.storage.uri",
                    rule(
                        r'!self.lowerAscii().matches("^https?://(169[.]254[.]|[[]fe80:)")',
                        "must not be a link-local address: name the S3 service by its host name",
                    ),
                ),
            ),
        ]
        | None
    ) = None
    """URL of the S3 service, for example https://account.r2.cloudflarestorage.com. Absent = AWS."""
    region: (
        Annotated[
            str,
            Field(
                max_length=64,
                pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
                json_schema_extra=worded("must be a region's name, such as eu-central-1, or auto"),
            ),
        ]
        | None
    ) = None
    """Region of the bucket, for example eu-central-1; R2 wants auto. Absent = as the environment says."""
    credentials_secret: SecretName | None = None
    """Secret in the run's namespace with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and, where used,
    AWS_SESSION_TOKEN). It must carry the label lorafinetune.io/storage: "true". Absent = the pod's ambient identity."""
    on_delete: OnDelete = OnDelete.KEEP_ARTIFACT
    """What stays in the bucket when the run is deleted: KeepArtifact (the final LoRA) or DeleteAll (nothing)."""
    unsafe_no_fencing: bool = False
    """Accept a store without conditional writes. A partitioned old attempt may then overwrite a newer one's work."""


class OnDemandSpec(OpenModel):
    """When to stop trying spot capacity, and what to use then."""

    pools: Annotated[list[PoolName], Field(min_length=1, max_length=16, json_schema_extra=listed("set"))]
    """GPUPools with capacityType OnDemand, best first. The first is used; the others must exist."""
    after_preemptions: Annotated[int, Field(ge=1, le=1000)] = 5
    """Preemptions after which the run goes on on these pools."""


class PlacementSpec(OpenModel):
    """Where attempts may run."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                "!has(self.pools) || !has(self.onDemand) || !self.onDemand.pools.exists(name, name in self.pools)",
                "spec.placement.onDemand.pools names a pool that stands in spec.placement.pools too: a pool is either "
                "tried first or fallen back to, remove it from one of them",
                field_path=".onDemand.pools",
            )
        )
    )

    pools: Annotated[list[PoolName], Field(max_length=16, json_schema_extra=listed("set"))] = Field(
        default_factory=list
    )
    """GPUPools, best first. The first is used; the others must exist, and are not tried yet. Empty = the cheapest of
    those that are marked default."""
    on_demand: OnDemandSpec | None = None
    """On-demand capacity to fall back to. Absent = never."""


class LoRAFineTuneSpec(OpenModel):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                "!has(self.training.steps) || self.training.steps < 1 "
                "|| self.training.warmupSteps <= self.training.steps",
                "spec.training.warmupSteps is more than spec.training.steps, so the learning rate would never reach "
                "its peak: choose less, usually a tenth of steps",
                field_path=".training.warmupSteps",
            ),
            _not_inside("dataset.source", "training images"),
            _not_inside("baseModel.source", "parts of the base model"),
        )
    )

    base_model: BaseModelSpec
    """The SDXL model that the LoRA is trained on."""
    dataset: DatasetSpec
    """The training images."""
    training: Training = Field(default_factory=Training)
    """The mathematics of the run. May not change once the run has started, but for steps, which may be raised."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """How often training state is committed, and how much of it is kept."""
    storage: StorageSpec
    """The S3-compatible bucket that holds checkpoints and the artifact."""
    placement: PlacementSpec = Field(default_factory=PlacementSpec)
    """Where attempts may run. May be changed at any time; a running attempt stays where it is."""
    suspend: bool = False
    """True stops the run at once, with its work saved, and frees its GPU; false goes on from there."""
