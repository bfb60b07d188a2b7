"""What fits together in spec.training: CEL rules over the whole spec, each with the field and the way out."""

from __future__ import annotations

import re
from typing import Final

from lorafinetune.api.places import LORA_SENTENCE, LORA_SOURCE
from lorafinetune.api.words import Extra, rule
from lorafinetune.contract.coherence import LARGEST_ADAMW_RATE, SMALLEST_PRODIGY_RATE
from lorafinetune.contract.runconfig import MAX_INTERMEDIATE, MAX_PICTURED

CLASS_IMAGES: Final = "(has(self.dataset.classSource) || has(self.dataset.classPrompt))"
KEPT: Final = "self.checkpoint.keepIntermediate"
KNOWN: Final = "has(self.training.steps) && self.training.steps >= 1"


def _training(field: str, expression: str, message: str) -> Extra:
    """Return a rule over spec.training, whose fields *expression* names by ``t.``; *message* goes on after *field*."""
    whole = re.sub(r"\bt[.]", "self.training.", expression)
    return rule(whole, f"spec.training.{field} {message}", field_path=f".training.{field}")


def _rate(field: str) -> tuple[Extra, Extra]:
    return (
        _training(
            field,
            f"!has(t.{field}) || t.optimizer == 'Prodigy' || t.{field} <= {LARGEST_ADAMW_RATE}",
            f"is more than {LARGEST_ADAMW_RATE}, with which AdamW learns nothing but noise: 0.00005 to 0.001 is usual; "
            "only Prodigy takes 1",
        ),
        _training(
            field,
            f"!has(t.{field}) || t.optimizer != 'Prodigy' || t.{field} >= {SMALLEST_PRODIGY_RATE}",
            f"is less than {SMALLEST_PRODIGY_RATE}, but Prodigy finds the rate itself and only multiplies it by this: "
            "remove it, which means 1",
        ),
    )


LENGTH: Final = (
    _training(
        "epochs",
        "!has(t.epochs) || !has(t.steps)",
        "and spec.training.steps both say how long to train: remove one of them",
    ),
    _training(
        "warmupSteps",
        f"!({KNOWN}) || t.warmupSteps <= t.steps",
        "is more than spec.training.steps, so the learning rate would never reach its peak: choose less, usually a "
        "tenth of steps",
    ),
)
SCHEDULE: Final = (
    _training(
        "scheduleCycles",
        "t.scheduleCycles == 1 || t.schedule == 'cosineWithRestarts'",
        "only goes with schedule cosineWithRestarts: remove it, or choose that schedule",
    ),
    _training(
        "schedulePower",
        "t.schedulePower == 2.0 || t.schedule == 'polynomial'",
        "only goes with schedule polynomial: remove it, or choose that schedule",
    ),
)
LOSS: Final = (
    _training(
        "zeroTerminalSnr",
        "!t.zeroTerminalSnr || !has(t.prediction) || t.prediction == 'v_prediction'",
        "only goes with prediction v_prediction, for nothing can be learned of pure noise from epsilon: remove it, or "
        "set prediction as the base model was trained",
    ),
    _training(
        "priorLossWeight",
        f"t.priorLossWeight == 1.0 || {CLASS_IMAGES}",
        "weighs class images, and there are none: remove it, or set spec.dataset.classSource or "
        "spec.dataset.classPrompt",
    ),
    _training(
        "captions.keepTokens",
        "t.captions.keepTokens == 0 || t.captions.shuffle",
        "only goes with spec.training.captions.shuffle: remove it, or set shuffle to true",
    ),
)
ADAPTER: Final = (
    _training(
        "textEncoderLearningRate",
        "!has(t.textEncoderLearningRate) || t.lora.textEncoder",
        "only goes with spec.training.lora.textEncoder: remove it, or set textEncoder to true",
    ),
    rule(
        f"!has(self.training.lora.initFrom) || (self.training.lora.initFrom.matches(r'{LORA_SOURCE}') "
        "&& !self.training.lora.initFrom.split('/').exists(part, part == '.' || part == '..'))",
        f"spec.training.lora.initFrom {LORA_SENTENCE}, or is . or ..",
        field_path=".training.lora.initFrom",
    ),
)
KEEPING: Final = (
    rule(
        f"!has({KEPT}) || !has({KEPT}.everySteps) || {KEPT}.everySteps < 1 || !({KNOWN}) "
        f"|| self.training.steps / {KEPT}.everySteps <= {MAX_INTERMEDIATE}",
        f"spec.checkpoint.keepIntermediate.everySteps would keep more than {MAX_INTERMEDIATE} LoRAs of "
        "spec.training.steps: choose more, or name the steps",
        field_path=".checkpoint.keepIntermediate.everySteps",
    ),
    rule(
        f"!has({KEPT}) || !({KNOWN}) || ((!has({KEPT}.everySteps) || {KEPT}.everySteps <= self.training.steps) "
        f"&& (!has({KEPT}.steps) || {KEPT}.steps.all(step, step <= self.training.steps)))",
        "spec.checkpoint.keepIntermediate names steps after the last one, spec.training.steps: choose less",
        field_path=".checkpoint.keepIntermediate",
    ),
    rule(
        f"!has(self.validation) || self.validation.everySteps < 1 || !({KNOWN}) "
        f"|| self.training.steps / self.validation.everySteps <= {MAX_PICTURED}",
        f"spec.validation.everySteps would make more than {MAX_PICTURED} rows of pictures in spec.training.steps: "
        "choose more",
        field_path=".validation.everySteps",
    ),
)

RULES: Final = (
    *LENGTH,
    *_rate("learningRate"),
    *_rate("textEncoderLearningRate"),
    *SCHEDULE,
    *LOSS,
    *ADAPTER,
    *KEEPING,
)
"""All of them, for the spec."""
