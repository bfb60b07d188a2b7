"""What does not go together in a run config, said by the field: for who runs the trainer without an API server.

On Kubernetes the same is refused when a run is applied, by the rules in ``api``; a test holds both to one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.contract.training import Optimizer, Prediction, Schedule, Training

LARGEST_ADAMW_RATE: Final = 0.1
SMALLEST_PRODIGY_RATE: Final = 0.01
USUAL_ADAMW_RATES: Final = (1e-6, 2e-3)
USUAL_PRODIGY_RATES: Final = (0.1, 2.0)


def oddities(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for each thing in *config* that can be meant, and is more often a slip."""
    training = config.training
    prodigy = training.optimizer is Optimizer.PRODIGY
    low, high = USUAL_PRODIGY_RATES if prodigy else USUAL_ADAMW_RATES
    usual = "1 is usual, for it finds the rate itself" if prodigy else "0.00005 to 0.001 is usual"
    for name, rate in _rates(training):
        if not low <= rate <= high:
            word = "high" if rate > high else "low"
            yield f"training.{name} {rate:g} is unusually {word} for {training.optimizer}: {usual}"


def contradictions(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for each thing in *config* that does not go together, with the field and the way out."""
    training, dataset, kept = config.training, config.dataset, config.checkpoint.keep_intermediate
    classes = dataset.class_source is not None or dataset.class_prompt is not None
    if training.steps is not None and training.epochs is not None:
        yield "training.epochs and training.steps both say how long to train: remove one of them"
    if training.steps is not None and training.warmup_steps > training.steps:
        yield "training.warmupSteps is more than training.steps: choose less, usually a tenth of steps"
    if training.steps is not None and kept is not None and max([*kept.steps, kept.every_steps or 0]) > training.steps:
        yield "checkpoint.keepIntermediate names steps after the last one, training.steps: choose less"
    for name, rate in _rates(training):
        if training.optimizer is not Optimizer.PRODIGY and rate > LARGEST_ADAMW_RATE:
            yield (
                f"training.{name} is more than {LARGEST_ADAMW_RATE}, with which AdamW learns nothing but noise: "
                "0.00005 to 0.001 is usual"
            )
        if training.optimizer is Optimizer.PRODIGY and rate < SMALLEST_PRODIGY_RATE:
            yield (
                f"training.{name} is less than {SMALLEST_PRODIGY_RATE}, but Prodigy finds the rate itself and only "
                "multiplies it by this: remove it, which means 1"
            )
    if training.schedule_cycles != 1 and training.schedule is not Schedule.COSINE_WITH_RESTARTS:
        yield "training.scheduleCycles only goes with schedule cosineWithRestarts: remove it, or choose that schedule"
    if training.schedule_power != 2.0 and training.schedule is not Schedule.POLYNOMIAL:
        yield "training.schedulePower only goes with schedule polynomial: remove it, or choose that schedule"
    if training.zero_terminal_snr and training.prediction is Prediction.EPSILON:
        yield "training.zeroTerminalSnr only goes with prediction v_prediction: remove it, or set prediction"
    if training.prior_loss_weight != 1.0 and not classes:
        yield (
            "training.priorLossWeight weighs class images, and there are none: remove it, or set dataset.classSource "
            "or dataset.classPrompt"
        )
    if training.captions.keep_tokens and not training.captions.shuffle:
        yield "training.captions.keepTokens only goes with training.captions.shuffle: remove it, or set shuffle to true"
    if training.text_encoder_learning_rate is not None and not training.lora.text_encoder:
        yield "training.textEncoderLearningRate only goes with training.lora.textEncoder: remove it, or set that true"
    if dataset.class_images is not None and dataset.class_source is not None:
        yield "dataset.classImages says how many to make, and dataset.classSource has them: remove one of them"
    if dataset.keep_class_images and not dataset.makes_class_images:
        yield "dataset.keepClassImages keeps images that a run makes, and this one makes none: remove it"
    if dataset.class_images is not None and dataset.class_prompt is None:
        yield "dataset.classImages needs dataset.classPrompt, from which they are made: set it, or remove classImages"


def _rates(training: Training) -> list[tuple[str, float]]:
    """Return the learning rates that were given, by the names of their fields."""
    found = (
        ("learningRate", training.learning_rate),
        ("textEncoderLearningRate", training.text_encoder_learning_rate),
    )
    return [(name, rate) for name, rate in found if rate is not None]
