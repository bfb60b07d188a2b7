"""What a field of a run config is called: which there are, and which is meant by a name that there is not.

Who comes from another training script writes its names first; a table says what they are called here.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorafinetune.contract.runconfig import RunConfig

MAX_LISTED: Final = 40
"""Fields that a sentence lists."""
ELSEWHERE: Final = {
    "training.lora.rank": "networkDim dim r loraRank loraR networkRank",
    "training.lora.alpha": "networkAlpha loraAlpha",
    "training.lora.dropout": "networkDropout loraDropout",
    "training.lora.initFrom": "networkWeights",
    "training.lora.dora": "useDora",
    "training.lora.rsLora": "useRslora",
    "training.lora.textEncoder": "trainTextEncoder",
    "training.lora.targets": "targetModules networkModule",
    "training.steps": "maxTrainSteps maxSteps trainSteps trainingSteps numSteps numTrainSteps",
    "training.epochs": "maxTrainEpochs numTrainEpochs maxEpochs numEpochs",
    "training.learningRate": "lr unetLr rate unetLearningRate",
    "training.textEncoderLearningRate": "textEncoderLr",
    "training.batchSize": "trainBatchSize perDeviceTrainBatchSize",
    "training.gradientAccumulation": "gradientAccumulationSteps gradAccumSteps accumulationSteps",
    "training.gradientCheckpointing": "gradCheckpointing",
    "training.optimizer": "optimizerType",
    "training.schedule": "lrScheduler scheduler lrSchedulerType",
    "training.scheduleCycles": "lrSchedulerNumCycles lrNumCycles",
    "training.schedulePower": "lrSchedulerPower lrPower",
    "training.warmupSteps": "lrWarmupSteps warmup",
    "training.weightDecay": "adamWeightDecay",
    "training.maxGradNorm": "gradClip",
    "training.minSnrGamma": "snrGamma",
    "training.precision": "mixedPrecision dtype",
    "training.prediction": "vParameterization predictionType",
    "training.aspectBuckets": "enableBucket bucketing",
    "training.randomFlip": "flipAug",
    "training.captions.shuffle": "shuffleCaption shuffleCaptions",
    "training.captions.dropout": "captionDropoutRate captionDropout",
    "dataset.source": "path dataPath trainDataDir instanceDataDir imageDir imageFolder datasetPath",
    "dataset.classSource": "regDataDir classDataDir",
    "dataset.classImages": "numClassImages",
    "baseModel.source": "pretrainedModelNameOrPath modelNameOrPath pretrainedModel modelName path",
    "baseModel.vae": "pretrainedVaeModelNameOrPath vaePath vaeModel",
    "storage.uri": "outputDir outputPath bucket",
    "run.name": "outputName",
    "checkpoint.everySteps": "checkpointingSteps saveEveryNSteps saveSteps",
    "checkpoint.keep": "checkpointsTotalLimit saveLastNStepsState",
    "validation.prompts": "samplePrompts validationPrompt validationPrompts",
    "validation.everySteps": "sampleEveryNSteps",
}
"""Fields here, and what they are called in other training scripts, in camel case."""


def plain(name: str) -> str:
    """Return *name* as it is compared: ``networkDim``, ``network_dim`` and ``--network-dim`` are one."""
    return re.sub(r"[-_\s]", "", name).lower()


def every(model: type[BaseModel] = RunConfig, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield all fields below *model*, by their paths in JSON's names."""
    for one in model.model_fields.values():
        yield f"{above}{one.alias}", one
        for inner in (one.annotation, *getattr(one.annotation, "__args__", ())):
            if inspect.isclass(inner) and issubclass(inner, BaseModel):
                yield from every(inner, f"{above}{one.alias}.")


def meant(above: str, name: str) -> str | None:
    """Return the field that *name* is meant for where it stands in the object *above*, or None.

    The same name beside it comes first, then another script's name for a field beside it, then a name that is nearly
    it, then the same name elsewhere.
    """
    paths = sorted(path for path, _ in every())
    beside = {plain(_last(one)): one for one in paths if _above(one) == above}
    theirs = [path for path, names in ELSEWHERE.items() if plain(name) in map(plain, names.split())]
    near = difflib.get_close_matches(plain(name), beside, 1, 0.75)
    found = [
        *([beside[plain(name)]] if plain(name) in beside else []),
        *(one for one in theirs if one.startswith(f"{above}.")),
        *(beside[one] for one in near),
        *(one for one in paths if plain(_last(one)) == plain(name)),
        *theirs,
    ]
    return found[0] if found else None


def listed(above: str) -> str:
    """Return the fields that there are in the object *above*."""
    names = sorted(_last(one) for one, _ in every() if _above(one) == above)
    return ", ".join([*names[:MAX_LISTED], *(["..."] if len(names) > MAX_LISTED else [])])


def _above(path: str) -> str:
    return path.rpartition(".")[0]


def _last(path: str) -> str:
    return path.rpartition(".")[2]
