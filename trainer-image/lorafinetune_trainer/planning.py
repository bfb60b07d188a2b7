"""The run's numeric identity: made by the first attempt, obeyed by all others, and what differs said by name."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Final

from lorafinetune.contract.plan import Plan
from lorafinetune.contract.runconfig import RunConfig
from lorafinetune_trainer.failure import invalid

LIBRARIES: Final = ("accelerate", "diffusers", "numpy", "peft", "torch", "transformers")
MAX_THREADS: Final = 8
"""More threads than this gain little on the CPU and tie the run to large nodes."""


def threads() -> int:
    """Return the number of CPU threads for a new plan: ``OMP_NUM_THREADS``, else this process's processors, bounded."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def libraries() -> dict[str, str]:
    """Return the version of each library that takes part in the mathematics."""
    return {name: metadata.version(name) for name in LIBRARIES}


def device() -> str:
    """Return the GPU's product name, or ``cpu`` with its kind and vector instructions, which change the rounding."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def make(config: RunConfig, *, dataset_digest: str, base_model_digest: str, thread_count: int) -> Plan:
    """Return the plan that this attempt would commit."""
    training = config.training
    return Plan(
        config_digest=config.digest(),
        config=config.mathematics(),
        dataset_digest=dataset_digest,
        base_model_digest=base_model_digest,
        micro_batch=training.batch_size,
        precision=training.precision,
        gradient_checkpointing=training.gradient_checkpointing,
        device=device(),
        threads=thread_count,
        libraries=libraries(),
    )


def check(plan: Plan, mine: Plan) -> list[str]:
    """Compare the run's *plan* with this attempt's: return what may change bits, refuse what changes the result."""
    wrong = [
        f"{name} was {plan.config.get(name)!r}, now {mine.config.get(name)!r}"
        for name in sorted(plan.config.keys() | mine.config.keys())
        if plan.config.get(name) != mine.config.get(name)
    ]
    if plan.dataset_digest != mine.dataset_digest:
        wrong.append("the images or captions of dataset.source have changed")
    if plan.base_model_digest != mine.base_model_digest:
        wrong.append("the weights of baseModel.source have changed")
    if wrong:
        raise invalid(
            "PlanMismatch",
            f"the run cannot go on with other inputs than it began with: {'; '.join(wrong)}. "
            "Put them back, or delete the run and create it anew",
        )
    remarks = [
        f"{name} {plan.libraries.get(name)} became {version}"
        for name, version in mine.libraries.items()
        if plan.libraries.get(name) != version
    ]
    if plan.device != mine.device:
        remarks.append(f"{plan.device} became {mine.device}")
    return remarks
