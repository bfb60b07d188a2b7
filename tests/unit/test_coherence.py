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
KEPT = "spec.checkpoint.keepIntermediate"
ELSEWHERE = (f"{KEPT}.", "spec.validation", "spec.training.lora.initFrom")
"""What the trainer judges where it knows the steps, or fetches the file."""


def told(bad: Bad) -> RunConfig | None:
    """The run config of a mistake, where the models take it: then only a rule over several fields can refuse it."""
    try:
        spec = LoRAFineTuneSpec.model_validate(changed(FINETUNE, bad.changes)["spec"])
        return pods.run_config(RUN, spec, pods.Trainer(image="trainer"))
    except (ValidationError, ValueError, KeyError, TypeError):
        return None


# Text where a number belongs is read as that number here; the trainer and the API server refuse it.
MISTAKES = [
    (bad, config)
    for bad in (*BAD_PLACES, *BAD_TRAINING)
    if bad.field.startswith(("spec.training", "spec.dataset.classImages", "spec.dataset.keep", KEPT))
    and not bad.field.startswith(ELSEWHERE)
    if (config := told(bad)) is not None and "as text" not in bad.mistake
]


def test_there_are_mistakes_to_compare() -> None:
    assert len(MISTAKES) >= 14
    assert [bad.mistake for bad, _ in MISTAKES if bad.field == KEPT] == ["none kept", "one kept that never comes"]


@pytest.mark.parametrize(("bad", "config"), MISTAKES, ids=[bad.mistake for bad, _ in MISTAKES])
def test_what_the_api_server_refuses_the_trainer_refuses(bad: Bad, config: RunConfig) -> None:
    assert any(bad.field.removeprefix("spec.") in one for one in coherence.contradictions(config)), config.training


RATES: dict[str, list[tuple[float, str]]] = {
    "AdamW": [(1e-7, "low"), (1e-4, ""), (1e-3, ""), (0.01, "high"), (1.0, "refused")],
    "AdamW8bit": [(1e-4, ""), (0.01, "high"), (1.0, "refused")],
    "Prodigy": [(1e-4, "refused"), (0.01, "low"), (1.0, ""), (5.0, "high")],
}


@pytest.mark.parametrize(("optimizer", "rate", "said"), [(name, *row) for name, rows in RATES.items() for row in rows])
@pytest.mark.parametrize("field", ["learningRate", "textEncoderLearningRate"])
def test_rates_that_cannot_be_meant_are_refused_and_those_that_hardly_can_are_told(
    field: str, optimizer: str, rate: float, said: str
) -> None:
    training = {"optimizer": optimizer, field: rate, "lora": {"textEncoder": True}}
    spec = LoRAFineTuneSpec.model_validate(changed(FINETUNE, {"spec.training": training})["spec"])
    config = pods.run_config(RUN, spec, pods.Trainer(image="trainer"))
    wrong, odd = list(coherence.contradictions(config)), list(coherence.oddities(config))
    if said == "refused":
        assert [one.split()[0] for one in wrong] == [f"training.{field}"]
    else:
        assert wrong == []
        assert [one.split(" for ")[0] for one in odd] == (
            [f"training.{field} {rate:g} is unusually {said}"] if said else []
        )


@pytest.mark.parametrize("manifest", [FINETUNE, MINIMAL], ids=["whole", "minimal"])
def test_good_ones_are_taken(manifest: dict[str, object]) -> None:
    spec = LoRAFineTuneSpec.model_validate(manifest["spec"])
    assert list(coherence.contradictions(pods.run_config(RUN, spec, pods.Trainer(image="trainer")))) == []
