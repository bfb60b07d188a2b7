"""More bad manifests: what a user may get wrong about the training, its checkpoints and its pictures."""

from __future__ import annotations

from typing import Any, Final

from tests.integration.crd_refusals import Bad
from tests.manifests import REMOVED

KEPT: Final = "spec.checkpoint.keepIntermediate"
EVERY: Final = f"{KEPT}.everySteps"
PICTURES: Final[dict[str, Any]] = {"prompts": ["a dog"]}


def training(mistake: str, words: str, field: str, /, **changes: Any) -> Bad:
    """Return a mistake in fields of spec.training: the answer points at *field*."""
    made = {f"spec.training.{name}": value for name, value in changes.items()}
    return Bad(mistake, made, f"spec.training.{field}", words)


def pictures(mistake: str, words: str, field: str, /, **changes: Any) -> Bad:
    """Return a mistake in spec.validation."""
    return Bad(mistake, {"spec.validation": PICTURES | changes}, f"spec.validation.{field}", words)


BAD_TRAINING: Final = (
    Bad("no steps", {"spec.training.steps": 0}, "spec.training.steps", "should be greater than or equal to 1"),
    Bad("steps as text", {"spec.training.steps": "500"}, "spec.training.steps", "must be of type integer"),
    Bad("steps in fractions", {"spec.training.steps": 1.5}, "spec.training.steps", "must be of type integer"),
    Bad("too many steps", {"spec.training.steps": 1_000_001}, "spec.training.steps", "should be less than or equal to"),
    Bad(
        "resolution off the grid",
        {"spec.training.resolution": 1000},
        "spec.training.resolution",
        "should be a multiple of 64",
    ),
    Bad(
        "resolution too small",
        {"spec.training.resolution": 0},
        "spec.training.resolution",
        "should be greater than or equal to 64",
    ),
    Bad(
        "resolution too large",
        {"spec.training.resolution": 4096},
        "spec.training.resolution",
        "should be less than or equal to 2048",
    ),
    Bad("learning rate 0", {"spec.training.learningRate": 0}, "spec.training.learningRate", "should be greater than 0"),
    Bad(
        "learning rate too high",
        {"spec.training.learningRate": 11},
        "spec.training.learningRate",
        "should be less than or equal to 10",
    ),
    Bad(
        "learning rate as text",
        {"spec.training.learningRate": "1e-4"},
        "spec.training.learningRate",
        "must be of type number",
    ),
    Bad(
        "unknown schedule",
        {"spec.training.schedule": "Cosine"},
        "spec.training.schedule",
        'supported values: "constant", "linear", "cosine", "cosineWithRestarts", "polynomial"',
    ),
    Bad(
        "warm-up longer than the run",
        {"spec.training.warmupSteps": 501},
        "spec.training.warmupSteps",
        "choose less, usually a tenth of steps",
    ),
    Bad(
        "warm-up below zero",
        {"spec.training.warmupSteps": -1},
        "spec.training.warmupSteps",
        "should be greater than or equal to 0",
    ),
    Bad("no batch", {"spec.training.batchSize": 0}, "spec.training.batchSize", "should be greater than or equal to 1"),
    Bad(
        "batch too large",
        {"spec.training.batchSize": 65},
        "spec.training.batchSize",
        "should be less than or equal to 64",
    ),
    Bad(
        "no accumulation",
        {"spec.training.gradientAccumulation": 0},
        "spec.training.gradientAccumulation",
        "should be greater than or equal to 1",
    ),
    Bad(
        "weight decay below zero",
        {"spec.training.weightDecay": -0.1},
        "spec.training.weightDecay",
        "should be greater than or equal to 0",
    ),
    Bad("no gradient", {"spec.training.maxGradNorm": 0}, "spec.training.maxGradNorm", "should be greater than 0"),
    Bad(
        "unknown precision",
        {"spec.training.precision": "bfloat16"},
        "spec.training.precision",
        'supported values: "bf16", "fp16", "fp32"',
    ),
    Bad(
        "switch as text",
        {"spec.training.gradientCheckpointing": "true"},
        "spec.training.gradientCheckpointing",
        "must be of type boolean",
    ),
    Bad("seed below zero", {"spec.training.seed": -1}, "spec.training.seed", "should be greater than or equal to 0"),
    Bad(
        "seed beyond JSON's integers",
        {"spec.training.seed": 2**53},
        "spec.training.seed",
        "should be less than or equal to 9007199254740991",
    ),
    Bad("rank 0", {"spec.training.lora.rank": 0}, "spec.training.lora.rank", "should be greater than or equal to 1"),
    Bad(
        "rank too high", {"spec.training.lora.rank": 512}, "spec.training.lora.rank", "should be less than or equal to"
    ),
    Bad("alpha 0", {"spec.training.lora.alpha": 0}, "spec.training.lora.alpha", "should be greater than 0"),
    Bad("rank in the wrong place", {"spec.training.rank": 16}, "spec.training.rank", "unknown field"),
    Bad("LoRA as a number", {"spec.training.lora": 16}, "spec.training.lora", "must be of type object"),
    Bad(
        "checkpoint after no step",
        {"spec.checkpoint.everySteps": 0},
        "spec.checkpoint.everySteps",
        "should be greater than or equal to 1",
    ),
    Bad(
        "one checkpoint only",
        {"spec.checkpoint.keep": 1},
        "spec.checkpoint.keep",
        "should be greater than or equal to 2",
    ),
    Bad(
        "too many checkpoints",
        {"spec.checkpoint.keep": 101},
        "spec.checkpoint.keep",
        "should be less than or equal to 100",
    ),
    training("steps and epochs", "and spec.training.steps both say how long to train: remove one", "epochs", epochs=10),
    training("no epochs", "should be greater than or equal to 1", "epochs", steps=REMOVED, epochs=0),
    training("rate of Prodigy for AdamW", "only Prodigy takes 1", "learningRate", learningRate=1),
    training(
        "rate of Prodigy for 8-bit AdamW", "only Prodigy takes 1", "learningRate", learningRate=1, optimizer="AdamW8bit"
    ),
    training("rate of AdamW for Prodigy", "remove it, which means 1", "learningRate", optimizer="Prodigy"),
    training(
        "text encoders' rate of Prodigy for AdamW",
        "only Prodigy takes 1",
        "textEncoderLearningRate",
        textEncoderLearningRate=1,
        lora={"textEncoder": True},
    ),
    training(
        "text encoders' rate of AdamW for Prodigy",
        "remove it, which means 1",
        "textEncoderLearningRate",
        learningRate=1,
        optimizer="Prodigy",
        textEncoderLearningRate=5e-5,
        lora={"textEncoder": True},
    ),
    training("unknown optimizer", 'supported values: "AdamW", "AdamW8bit", "Prodigy"', "optimizer", optimizer="Lion"),
    training(
        "cycles of another schedule", "only goes with schedule cosineWithRestarts", "scheduleCycles", scheduleCycles=2
    ),
    training("power of another schedule", "only goes with schedule polynomial", "schedulePower", schedulePower=1),
    training(
        "zero SNR of epsilon",
        "only goes with prediction v_prediction",
        "zeroTerminalSnr",
        zeroTerminalSnr=True,
        prediction="epsilon",
    ),
    training("unknown prediction", 'supported values: "epsilon", "v_prediction"', "prediction", prediction="velocity"),
    training("weight of no class images", "and there are none: remove it", "priorLossWeight", priorLossWeight=0.5),
    training(
        "tokens kept of no shuffle",
        "only goes with spec.training.captions.shuffle",
        "captions.keepTokens",
        captions={"keepTokens": 1},
    ),
    training("more than all dropped", "should be less than or equal to 1", "captions.dropout", captions={"dropout": 2}),
    training(
        "text encoders' rate without text encoders",
        "only goes with spec.training.lora.textEncoder: remove it, or set textEncoder to true",
        "textEncoderLearningRate",
        textEncoderLearningRate=5e-5,
    ),
    training(
        "dropout in the adapter",
        "Must be 0: dropout inside the adapter is not supported",
        "lora.dropout",
        lora={"dropout": 0.1},
    ),
    training("unknown targets", 'supported values: "Attention", "All"', "lora.targets", lora={"targets": "UNet"}),
    training(
        "LoRA to start from in a folder",
        "must be one .safetensors file",
        "lora.initFrom",
        lora={"initFrom": "s3://loras/old/"},
    ),
    training(
        "LoRA to start from in a bucket of one letter",
        "a bucket's name has 3 to 63 lower-case letters",
        "lora.initFrom",
        lora={"initFrom": "s3://a/b.safetensors"},
    ),
    training(
        "LoRA to start from on the hub",
        "must be one .safetensors file",
        "lora.initFrom",
        lora={"initFrom": "hf://owner/name/lora.safetensors"},
    ),
    training(
        "LoRA to start from in a .ckpt",
        "must be one .safetensors file",
        "lora.initFrom",
        lora={"initFrom": "/loras/old.ckpt"},
    ),
    training(
        "LoRA to start from with a way up",
        "no part of a path is empty or holds ? or #, or is . or ..",
        "lora.initFrom",
        lora={"initFrom": "s3://loras/../old.safetensors"},
    ),
    training("another adapter", "unknown field", "lora.algorithm", lora={"algorithm": "LoKr"}),
    training("no micro-batch", "should be greater than or equal to 1", "microBatch", microBatch=0),
    training("average that forgets at once", "should be greater than or equal to 0.5", "emaDecay", emaDecay=0.1),
    training("average of nothing", "should be greater than or equal to 0.5", "emaDecay", emaDecay=0),
    training("average that never learns", "should be less than 1", "emaDecay", emaDecay=1),
    training("gamma 0", "should be greater than 0", "minSnrGamma", minSnrGamma=0),
    training("noise below zero", "should be greater than or equal to 0", "noiseOffset", noiseOffset=-0.1),
    Bad("nothing named to keep", {KEPT: {}}, EVERY, "takes either steps (a list, such as [200, 400]) or everySteps"),
    Bad("kept in two ways", {KEPT: {"steps": [100], "everySteps": 100}}, EVERY, "set one of the two"),
    Bad("no step to keep", {KEPT: {"steps": []}}, f"{KEPT}.steps", "should have at least 1 items"),
    Bad("step kept twice", {KEPT: {"steps": [100, 100]}}, f"{KEPT}.steps[1]", "Duplicate value"),
    Bad("step 0 kept", {KEPT: {"steps": [0]}}, f"{KEPT}.steps[0]", "should be greater than or equal to 1"),
    Bad("too many kept by name", {KEPT: {"steps": [*range(1, 66)]}}, f"{KEPT}.steps", "must have at most 64 items"),
    Bad("too many kept", {KEPT: {"everySteps": 7}}, EVERY, "would keep more than 64 LoRAs of spec.training.steps"),
    Bad("every 0 steps kept", {KEPT: {"everySteps": 0}}, EVERY, "should be greater than or equal to 1"),
    Bad("none kept", {KEPT: {"everySteps": 501}}, KEPT, "names steps after the last one, spec.training.steps"),
    Bad("one kept that never comes", {KEPT: {"steps": [100, 501]}}, KEPT, "names steps after the last one"),
    Bad("pictures of nothing", {"spec.validation": {}}, "spec.validation.prompts", "Required value"),
    pictures("no picture", "should have at least 1 items", "prompts", prompts=[]),
    pictures("too many pictures", "must have at most 8 items", "prompts", prompts=["a dog"] * 9),
    pictures("picture of blanks", "must hold words, for a picture is made from it", "prompts[0]", prompts=[" "]),
    pictures("picture of a novel", "may not be more than 512 bytes", "prompts[0]", prompts=["a dog " * 100]),
    pictures("picture with a bell", "holds control characters", "prompts[0]", prompts=["\x07 dog"]),
    pictures("bell to avoid", "holds control characters", "negativePrompt", negativePrompt="\x07"),
    pictures("too many rows", "would make more than 64 rows of pictures", "everySteps", everySteps=4),
    pictures("rows of no step", "should be greater than or equal to 1", "everySteps", everySteps=0),
    pictures("too little guidance", "should be greater than or equal to 1", "guidance", guidance=0.5),
    pictures("too long at a picture", "should be less than or equal to 100", "inferenceSteps", inferenceSteps=101),
    Bad("metrics elsewhere", {"spec.metrics": {"wandb": True}}, "spec.metrics.wandb", "unknown field"),
)
