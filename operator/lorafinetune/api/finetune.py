"""LoRAFineTune: one run, as its user writes it (spec); :mod:`lorafinetune.api.status` is what its user reads.

The API server refuses unknown fields; the operator, which reads what was stored, ignores them, so that it can be rolled
back under definitions that know more than it does. ``training`` alone is closed here too: mathematics is never guessed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from lorafinetune.api.checkpoint import CheckpointSpec
from lorafinetune.api.inputs import BaseModelSpec, DatasetSpec
from lorafinetune.api.limits import LimitsSpec
from lorafinetune.api.mathematics import RULES
from lorafinetune.api.pictures import MetricsSpec, ValidationSpec
from lorafinetune.api.placement import PlacementSpec
from lorafinetune.api.places import BUCKET, NAME, NAME_SENTENCE, NO_DOTS, SecretName, storage_outside
from lorafinetune.api.words import rule, ruled, worded
from lorafinetune.contract.model import OpenModel
from lorafinetune.contract.training import Training

STORAGE_URI = rf"^{BUCKET}(/[A-Za-z0-9!_.*'()-]+)*/?$"
ENDPOINT = r"^https?://([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$"


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
                "prefix of letters, digits and !_.*'()-, without empty parts",
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


class LoRAFineTuneSpec(OpenModel):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            *RULES,
            storage_outside("dataset.source", "training images"),
            storage_outside("dataset.classSource", "class images"),
            storage_outside("baseModel.source", "parts of the base model"),
            rule(
                "!has(self.ttlSecondsAfterFinished) || self.storage.onDelete != 'DeleteAll'",
                "spec.ttlSecondsAfterFinished would delete the artifact with storage.onDelete: DeleteAll: set onDelete "
                "to KeepArtifact, or delete the run by hand",
                field_path=".ttlSecondsAfterFinished",
            ),
            rule(
                "!has(self.placement.onDemand) || !has(self.placement.onDemand.whenDeadlineNeedsIt) || "
                "!self.placement.onDemand.whenDeadlineNeedsIt || has(self.limits.deadline)",
                "spec.placement.onDemand.whenDeadlineNeedsIt needs a deadline: set spec.limits.deadline, such as "
                '"2026-12-24T18:00:00Z", or remove whenDeadlineNeedsIt',
                field_path=".placement.onDemand.whenDeadlineNeedsIt",
            ),
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
    validation: ValidationSpec | None = None
    """Pictures that show how the training goes. Absent = none. While there are any, only everySteps may change."""
    metrics: MetricsSpec = Field(default_factory=MetricsSpec)
    """What is written down besides events."""
    storage: StorageSpec
    """The S3-compatible bucket that holds checkpoints and the artifact."""
    placement: PlacementSpec = Field(default_factory=PlacementSpec)
    """Where attempts may run. May be changed at any time; a running attempt stays where it is."""
    limits: LimitsSpec = Field(default_factory=LimitsSpec)
    """What the run may take at most: time, money, attempts. May be changed at any time."""
    queue_name: Annotated[str, Field(max_length=63, pattern=NAME, json_schema_extra=worded(NAME_SENTENCE))] | None = (
        None
    )
    """Kueue LocalQueue of the run's namespace, through which its attempts go. Absent = none."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds after which a run that has ended is deleted. The artifact stays. Absent = never."""
    suspend: bool = False
    """True stops the run at once, with its work saved, and frees its GPU; false goes on from there."""
