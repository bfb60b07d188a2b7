"""What the API server refuses by CEL, the trainer refuses by hand: each mistake of the tests for the one, for both."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.contract import coherence
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune.engine.observation import RunSeen
from lorafinetune.kube import pods
from tests.integration.crd_refusals import BAD_PLACES, Bad
from tests.integration.crd_refusals_training import BAD_TRAINING
from tests.manifests import FINETUNE, MINIMAL, changed

RUN = RunSeen("default", "timber", "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0", 1, 0.0)
ELSEWHERE = ("spec.checkpoint", "spec.validation", "spec.training.lora.initFrom")
"""What the trainer judges where it knows the steps, or fetches the file."""


def told(bad: Bad) -> RunConfig | None:
    """The run config of a mistake, where the models take it: then only a rule over several fields can refuse it."""
    try:
        spec = LoRAFineTuneSpec.model_validate(changed(FINETUNE, bad.changes)["spec"])
        return pods.run_config(RUN, spec, pods.Trainer(image="trainer"))
    except (ValidationError, ValueError, KeyError, TypeError):
        return None


# Text where a number belongs is read as that number here, and refused by the API server.
MISTAKES = [
    (bad, config)
    for bad in (*BAD_PLACES, *BAD_TRAINING)
    if bad.field.startswith(("spec.training", "spec.dataset.classImages")) and not bad.field.startswith(ELSEWHERE)
    if (config := told(bad)) is not None and "as text" not in bad.mistake
]


def test_there_are_mistakes_to_compare() -> None:
    assert len(MISTAKES) >= 12


@pytest.mark.parametrize(("bad", "config"), MISTAKES, ids=[bad.mistake for bad, _ in MISTAKES])
def test_what_the_api_server_refuses_the_trainer_refuses(bad: Bad, config: RunConfig) -> None:
    assert any(bad.field.removeprefix("spec.") in one for one in coherence.contradictions(config)), config.training


@pytest.mark.parametrize("manifest", [FINETUNE, MINIMAL], ids=["whole", "minimal"])
def test_good_ones_are_taken(manifest: dict[str, object]) -> None:
    spec = LoRAFineTuneSpec.model_validate(manifest["spec"])
    assert list(coherence.contradictions(pods.run_config(RUN, spec, pods.Trainer(image="trainer")))) == []
