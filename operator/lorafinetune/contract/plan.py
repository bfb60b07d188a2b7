"""What the first attempt decides for all later ones, committed to the head before step 1 and obeyed ever after."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lorafinetune.contract.manifest import Sha256
from lorafinetune.contract.model import CarriedModel
from lorafinetune.contract.training import MAX_STEPS


class Plan(CarriedModel):
    """The numeric identity of a run. An attempt that cannot keep to it must not train on silently."""

    config_digest: Sha256
    """Over the fields of the run config that change the mathematics."""
    config: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Those fields, flattened, so that a refusal can say which one differs."""
    dataset_digest: Sha256
    """Over contents, captions and repeats of the images, whatever their names."""
    class_digest: Sha256 | None = None
    """The same of the class images that ``dataset.classSource`` names."""
    base_model_digest: Sha256
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Optimizer steps, where the config gives none: from epochs or the size of the data set."""
    initial_lora_digest: Sha256 | None = None
    """Of the LoRA that the training starts from, where it does not start from nothing."""
    micro_batch: Annotated[int, Field(ge=1)]
    """Images in one forward pass, at most: those of one pass have the same shape."""
    compiled: bool = False
    """Whether the UNet's blocks are compiled."""
    attention: str = "sdpa"
    """Which attention is computed."""
    instructions: str = ""
    """Vector instructions that the CPU's mathematics is held to, e.g. ``avx2``; empty on a GPU."""
    image: str = ""
    """The trainer's image, where it is known."""
    precision: str
    gradient_checkpointing: bool
    device: str
    """``cpu`` or the GPU's product name."""
    threads: Annotated[int, Field(ge=1)]
    """CPU threads of the mathematics: their number is part of the rounding."""
    layers_per_block: Annotated[int, Field(ge=1)] | None = None
    """Of the base model's UNet. This and the next two are what the product takes from the base model besides weights,
    so that it can be published without it; absent in plans of earlier versions."""
    prediction: str | None = None
    """What the UNet is trained to predict: by the config, else by the base model."""
    zero_snr: bool | None = None
    """Whether the noise schedule ends in pure noise, likewise."""
    libraries: dict[str, str] = Field(default_factory=dict)
    """Version of each library that takes part in the mathematics."""
