"""The run config: all that an attempt is told, in one literal environment variable, with no secret in it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from lorafinetune.contract import canonical, layout
from lorafinetune.contract.model import Model
from lorafinetune.contract.training import Schedule, Training

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


class Run(Model):
    """Which run this is."""

    namespace: str = "default"
    name: str
    uid: str


class BaseModelSource(Model):
    """Where the base model comes from."""

    source: str
    """``hf://owner/name``, ``s3://bucket/prefix/`` or a folder; each holds a diffusers SDXL folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    vae: str | None = None
    """Another VAE, from the same kinds of places."""
    hub_credentials: str | None = None
    """Folder that holds ``HF_TOKEN``."""


class Dataset(Model):
    """Where the training images come from."""

    source: str
    """``s3://bucket/prefix/`` or a folder."""
    instance_prompt: str | None = None
    """The caption of every image that has no caption file of its own."""


class Checkpointing(Model):
    """How often to commit, and how much to keep. May change at any time."""

    every_steps: Annotated[int, Field(ge=1)] = 50
    keep: Annotated[int, Field(ge=2, le=100)] = 2


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
    storage: Storage
    webhook: Webhook | None = None
    """Absent when the trainer runs by hand: it then tells its terminal only."""
    scratch: str | None = None
    """Folder for downloads; absent = a temporary one."""
    notice_seconds: Annotated[float, Field(gt=0)] = 25.0
    """Time between SIGTERM and SIGKILL that the trainer may count on."""

    @property
    def prefix(self) -> layout.Location:
        """The run's own prefix in its bucket."""
        return layout.run_prefix(self.storage.uri, self.run.namespace, self.run.name, self.run.uid)

    def mathematics(self) -> dict[str, str | int | float | bool | None]:
        """Return the fields that change the LoRA's bytes, flattened; not cadence, keep, names and places.

        ``steps`` belongs to them only where the schedule looks at the end.
        """
        training = self.training.to_json()
        lora = training.pop("lora")
        if self.training.schedule is Schedule.CONSTANT:
            training.pop("steps")
        training["lora.rank"] = lora["rank"]
        training["lora.alpha"] = lora.get("alpha", float(lora["rank"]))
        return {f"training.{name}": value for name, value in training.items()} | {
            "dataset.instancePrompt": self.dataset.instance_prompt,
        }

    def digest(self) -> str:
        """SHA-256 over :meth:`mathematics`."""
        return canonical.digest(self.mathematics())
