"""What is trained and how: the part of a run's spec that the trainer obeys word for word."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from lorafinetune.contract.model import Model

MAX_STEPS = 1_000_000


class Precision(StrEnum):
    """The floating-point type of forward and backward; masters and optimizer state are always 32-bit."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


class Schedule(StrEnum):
    """How the learning rate moves over the steps, after the warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Lora(Model):
    """The low-rank adapter that is trained."""

    rank: Annotated[int, Field(ge=1, le=256)] = 16
    """Rank of the adapter matrices. 4 to 16 suits one subject; 32 and more suits a style. File size grows with it
    (about 6 MB per rank on SDXL, in float32)."""
    alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """Scale of the adapter: its output is multiplied by alpha / rank. Default: equal to rank, that is, a scale of 1."""


class Training(Model):
    """The mathematics of the run. May not change once the run has started, but for steps, which may be raised."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 500
    """Number of optimizer steps. 500 is right for 5 to 40 images of one subject."""
    resolution: Annotated[int, Field(ge=64, le=2048, multiple_of=64)] = 1024
    """Edge of the square training images in pixels, a multiple of 64. SDXL is made for 1024."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Peak learning rate of AdamW."""
    schedule: Schedule = Schedule.CONSTANT
    """How the learning rate moves after the warm-up: constant, linear (to zero) or cosine (to zero)."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Optimizer steps over which the learning rate rises from zero."""
    batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Images in one forward and backward pass."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] = 4
    """Passes whose gradients make one optimizer step: a step sees batchSize x gradientAccumulation images."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """AdamW's weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are scaled down so that their norm is at most this."""
    precision: Precision = Precision.BF16
    """Floating-point type of forward and backward (bf16, fp16, fp32). Adapter and optimizer state are always fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about half the GPU memory for about three quarters more time."""
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """Everything random in the run (initial weights, order, noise, timesteps, flips) follows from this number."""
    random_flip: bool = False
    """Mirror each image left to right with probability one half. Not for subjects with text or a parting."""
    lora: Lora = Field(default_factory=Lora)
    """The low-rank adapter that is trained."""
