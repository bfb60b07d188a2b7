"""What is trained and how: the part of a run's spec that the trainer obeys word for word."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from lorafinetune.contract.model import Model

MAX_STEPS: Final = 1_000_000
MAX_EPOCHS: Final = 100_000
PRODIGY_RATE: Final = 1.0
ADAMW_RATE: Final = 1e-4


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
    COSINE_WITH_RESTARTS = "cosineWithRestarts"
    POLYNOMIAL = "polynomial"


class Optimizer(StrEnum):
    """What turns gradients into updates."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"
    PRODIGY = "Prodigy"


class Prediction(StrEnum):
    """What the UNet predicts."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


class Targets(StrEnum):
    """Which layers are adapted."""

    ATTENTION = "Attention"
    ALL = "All"


class Lora(Model):
    """The low-rank adapter that is trained."""

    rank: Annotated[int, Field(ge=1, le=256)] = 16
    """Rank of the adapter matrices. 4 to 16 suits one subject; 32 and more suits a style. File size grows with it
    (about 6 MB per rank on SDXL with targets Attention, in float32)."""
    alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """Scale of the adapter: its output is multiplied by alpha / rank (by alpha / sqrt(rank) with rsLora). Default:
    equal to rank."""
    targets: Targets = Targets.ATTENTION
    """Layers that are adapted: Attention (queries, keys, values and outputs), or All (those, the feed-forward layers
    and the projections in and out of each transformer, as kohya's scripts do)."""
    rs_lora: bool = False
    """Rank-stabilised LoRA: divide alpha by the root of the rank, so that high ranks learn as fast as low ones."""
    dora: bool = False
    """Weight-decomposed adapter (DoRA) on the UNet: trains a magnitude per output besides the direction. About a third
    slower; often better at low ranks."""
    text_encoder: bool = False
    """Train a LoRA on both text encoders too. Prompt embeddings are then computed anew in each step, which is slower
    and takes more memory."""
    init_from: Annotated[str, Field(max_length=1024)] | None = None
    """An existing LoRA to start from, in diffusers' or kohya's format, of the same rank: s3://bucket/key.safetensors in
    the run's object store, or a file of the trainer's image. Absent = start from nothing."""
    dropout: Literal[0] = 0
    """Must be 0: dropout inside the adapter is not supported."""

    @property
    def full_alpha(self) -> float:
        """Alpha, with its default where none is given."""
        return self.alpha or float(self.rank)

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.full_alpha / (math.sqrt(self.rank) if self.rs_lora else self.rank)


class Captions(Model):
    """What is done to captions before they are encoded. Every choice follows from training.seed."""

    shuffle: bool = False
    """Show each caption's comma-separated parts in changing order (8 orders per caption), as is usual for tags."""
    keep_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    """Parts at the beginning of a caption that shuffle leaves where they are, such as the trigger word."""
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the images that are shown with an empty caption. 0.05 to 0.1 helps a style hold without its trigger."""


class Training(Model):
    """The mathematics of the run. May not change once the run has started, but for steps, which may be raised."""

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Number of optimizer steps. Absent, and without epochs: each image is shown about 100 times, in 300 to 3000
    steps."""
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] | None = None
    """How often each image is shown, in place of steps. A folder's repeats count."""
    resolution: Annotated[int, Field(ge=64, le=2048, multiple_of=64)] = 1024
    """Edge of square training images in pixels, a multiple of 64; images of other shapes get the same area. SDXL is
    made for 1024."""
    aspect_buckets: bool = True
    """Train each image in the shape (of the resolution's area) that is nearest to its own. False = cut squares."""
    random_crop: bool = False
    """Cut each image at one of four places that follow from the seed, instead of in its middle."""
    random_flip: bool = False
    """Mirror each image left to right with probability one half. Not for subjects with text or a parting."""
    captions: Captions = Field(default_factory=Captions)
    """What is done to captions before they are encoded."""
    prior_loss_weight: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Weight of the class images' loss. Only with dataset.classSource or dataset.classPrompt."""
    optimizer: Optimizer = Optimizer.ADAMW
    """AdamW; AdamW8bit (its state takes a quarter of the memory); or Prodigy, which finds its own learning rate."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate. Default: 0.0001, and 1 with Prodigy, which scales it itself."""
    text_encoder_learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate of the text encoders' LoRA. Default: learningRate. Only with lora.textEncoder."""
    schedule: Schedule = Schedule.CONSTANT
    """How the learning rate moves after the warm-up: constant, linear (to zero), cosine (to zero), cosineWithRestarts
    or polynomial (to zero)."""
    schedule_cycles: Annotated[int, Field(ge=1, le=1000)] = 1
    """Restarts of the schedule cosineWithRestarts."""
    schedule_power: Annotated[float, Field(gt=0, le=16)] = 2.0
    """Exponent of the schedule polynomial."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Optimizer steps over which the learning rate rises from zero."""
    batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Images of a step, together with gradientAccumulation: a step sees batchSize x gradientAccumulation images. How
    many of them go through the model at once is microBatch."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] = 4
    """Factor on the images of a step: a step sees batchSize x gradientAccumulation images."""
    micro_batch: Annotated[int, Field(ge=1, le=64)] | None = None
    """Images that go through the model at once: more is faster and takes more memory. Absent = as many as the first
    attempt's memory holds by calculation, and pinned from then on."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """The optimizer's weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are scaled down so that their norm is at most this."""
    min_snr_gamma: Annotated[float, Field(gt=0, le=100)] | None = None
    """Weigh the loss of each timestep by min(SNR, gamma) (arXiv 2303.09556). 5 is usual. Absent = all alike."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Add this much of a constant per channel to the noise, which helps very dark and very bright pictures. 0.05 is
    usual."""
    prediction: Prediction | None = None
    """What the UNet predicts: epsilon or v_prediction. Absent = as the base model's scheduler says."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last timestep is pure noise (arXiv 2305.08891). Only with v_prediction."""
    ema_decay: Annotated[float, Field(ge=0.5, lt=1)] | None = None
    """Publish an exponential moving average of the weights, with this decay (0.999 is usual for some thousand steps).
    Absent = publish the last weights."""
    precision: Precision = Precision.BF16
    """Floating-point type of forward and backward (bf16, fp16, fp32). Adapter and optimizer state are always fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about half the GPU memory for about three quarters more time."""
    compile: bool = False
    """Compile the UNet's transformer blocks (torch.compile). Minutes at each start, then faster steps; worth it for
    some thousand steps. The run keeps to it: compiled and plain code round differently."""
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    """Everything random in the run (initial weights, order, noise, timesteps, crops, flips, captions) follows from this
    number."""
    lora: Lora = Field(default_factory=Lora)
    """The low-rank adapter that is trained."""

    @property
    def images_per_step(self) -> int:
        """Slots of one optimizer step, class images not counted."""
        return self.batch_size * self.gradient_accumulation

    @property
    def peak_rate(self) -> float:
        """Peak learning rate, with the optimizer's default where none is given."""
        if self.learning_rate is not None:
            return self.learning_rate
        return PRODIGY_RATE if self.optimizer is Optimizer.PRODIGY else ADAMW_RATE

    @property
    def looks_at_the_end(self) -> bool:
        """Whether the learning rate depends on the number of steps, which then cannot be raised."""
        return self.schedule is not Schedule.CONSTANT
