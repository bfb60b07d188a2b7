"""Each feature of the training, stopped after every step and gone on with from bytes: not one bit differs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lorafinetune_trainer.conditioning.samples import Samples
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.training import compiling
from lorafinetune_trainer.training import model as models
from tests.unit.trainer import tiny

BUCKETS = Samples((tiny.sample(0), tiny.sample(1, shape=(8, 12)), tiny.sample(2, shape=(12, 8), repeats=2)))
CLASSES = (tiny.sample(7), tiny.sample(8))

FEATURES: dict[str, tuple[dict[str, Any], Samples | None]] = {
    "everything of the data": (
        {"randomFlip": True, "randomCrop": True, "captions": {"shuffle": True, "dropout": 0.4}, "noiseOffset": 0.1},
        None,
    ),
    "buckets and repeats": ({"gradientAccumulation": 4}, BUCKETS),
    "class images": ({"priorLossWeight": 0.5}, tiny.samples(classes=CLASSES)),
    "EMA": ({"emaDecay": 0.9}, None),
    "Prodigy": ({"optimizer": "Prodigy", "learningRate": 1.0, "schedule": "cosine"}, None),
    "8-bit AdamW": ({"optimizer": "AdamW8bit"}, None),
    "DoRA": ({"lora": {"dora": True}, "precision": "bf16"}, None),
    "rsLoRA on all layers": ({"lora": {"rsLora": True, "targets": "All", "alpha": 2}}, None),
    "text encoders": (
        {"lora": {"textEncoder": True}, "textEncoderLearningRate": 0.003, "captions": {"dropout": 0.3}},
        None,
    ),
    "min-SNR": ({"minSnrGamma": 5, "schedule": "polynomial", "warmupSteps": 1}, None),
    "v-prediction with zero terminal SNR": (
        {"prediction": "v_prediction", "zeroTerminalSnr": True, "minSnrGamma": 5},
        None,
    ),
    "bf16 with gradient checkpointing": ({"precision": "bf16", "gradientCheckpointing": True}, None),
    "text encoders with gradient checkpointing": ({"lora": {"textEncoder": True}, "gradientCheckpointing": True}, None),
    "fp16": ({"precision": "fp16"}, None),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_stopped_after_every_step(feature: str) -> None:
    changes, given = FEATURES[feature]
    settings = tiny.training(**changes)
    undisturbed = tiny.loop(settings, given, micro_batch=2)
    losses = [one.loss for one in tiny.train(undisturbed, 3)]
    kept, again = tiny.loop(settings, given, micro_batch=2).snapshot(), []
    for step in (1, 2, 3):
        attempt = tiny.loop(settings, given, micro_batch=2)
        attempt.restore(tiny.through_bytes(kept))
        again += [one.loss for one in tiny.train(attempt, step)]
        kept = attempt.snapshot()
    assert tiny.differing(undisturbed.snapshot(), kept) == []
    assert again == losses
    assert kept.updates == 3 - kept.scalars["skipped"]
    moved = undisturbed.published()
    assert all(torch.equal(moved[name], one) for name, one in attempt.published().items())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own look at its inputs
def test_compiled_and_stopped_after_every_step() -> None:
    """Blocks compiled anew in each attempt: the same bits again, and nearly those of plain code."""
    settings = tiny.training()
    undisturbed = tiny.loop(settings, BUCKETS, compiled=True)
    tiny.train(undisturbed, 3)
    kept = tiny.loop(settings, BUCKETS).snapshot()
    for step in (1, 2, 3):
        torch.compiler.reset()
        attempt = tiny.loop(settings, BUCKETS, compiled=True)
        attempt.restore(tiny.through_bytes(kept))
        tiny.train(attempt, step)
        kept = attempt.snapshot()
    assert tiny.differing(undisturbed.snapshot(), kept) == []
    plain = tiny.loop(settings, BUCKETS)
    tiny.train(plain, 3)
    ours, theirs = (torch.cat([one.flatten() for one in each.published().values()]) for each in (undisturbed, plain))
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 1e-2


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match=r"training\.compile: there is no C\+\+ compiler in this image"):
        compiling.check()
    monkeypatch.undo()
    compiling.check()


def test_dropout_of_the_base_model_takes_no_part() -> None:
    """A config may ask for it, and the trained parts are in training mode: it would draw from a global generator."""
    settings = tiny.training(lora={"textEncoder": True}, gradientCheckpointing=True)
    unet, encoders, config = copy.deepcopy(tiny.frozen())
    for module in (module for part in (unet, *(one.model for one in encoders)) for module in part.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        elif isinstance(vars(module).get("dropout"), float):
            module.dropout = 0.5
    model = models.adapted(unet, encoders, models.scheduler(config, settings), settings, tiny.CPU)

    def answer() -> torch.Tensor:
        embeddings, pooled = model.embed(["photo of sks dog"])
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        return model.predict(torch.ones(1, 4, 8, 8), torch.tensor([3]), embeddings, pooled, ids)

    assert torch.equal(answer(), answer())
