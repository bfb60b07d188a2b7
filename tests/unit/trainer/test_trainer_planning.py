"""The plan: what a later attempt may differ in, and what it is refused for."""

from __future__ import annotations

import pytest

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer import planning
from lorafinetune_trainer.failure import Failure


def config(**training: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "timber", "uid": "uid"},
            "baseModel": {"source": "/model"},
            "dataset": {"source": "/photos"},
            "training": training,
            "storage": {"uri": "s3://loras/"},
        }
    )


def plan(of: RunConfig) -> Plan:
    return Plan(
        config_digest=of.digest(), config=of.mathematics(), dataset_digest="0" * 64, base_model_digest="0" * 64,
        micro_batch=1, precision="fp32", gradient_checkpointing=False, device="cpu", threads=1,
    )  # fmt: skip


def test_another_number_of_steps_is_refused_where_the_schedule_looks_at_the_end() -> None:
    planning.check_config(plan(config(steps=40)), config(steps=50))
    before = plan(config(steps=40, schedule="cosine"))
    with pytest.raises(Failure, match=r"training\.steps was 40, now 50"):
        planning.check_config(before, config(steps=50, schedule="cosine"))


def test_it_says_nothing_about_what_is_published() -> None:
    before = plan(config(steps=40, schedule="cosine"))
    planning.check_config(before, config(steps=50, schedule="cosine"), except_for={"training.steps"})
    with pytest.raises(Failure, match=r"training\.lora\.rank was 16, now 8"):
        planning.check_config(
            before, config(steps=50, schedule="cosine", lora={"rank": 8}), except_for={"training.steps"}
        )
