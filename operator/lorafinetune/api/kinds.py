"""The two kinds, whole: LoRAFineTune and GPUPool, with their columns and what may not change once a run has started."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from lorafinetune.api.crd import AGE, Column, Kind
from lorafinetune.api.finetune import BaseModelSpec, DatasetSpec, LoRAFineTuneSpec, StorageSpec
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.api.words import Extra, rule
from lorafinetune.contract.training import Training

STARTED: Final = "has(oldSelf.status) && has(oldSelf.status.startTime)"

EDITABLE: Final = frozenset({"baseModel.credentialsSecret", "storage.credentialsSecret", "storage.onDelete"})
"""Editable at any time although their fellows are not: none changes the mathematics or where the run's objects lie."""


def _frozen(member: str, model: type[BaseModel]) -> list[Extra]:
    rules = []
    for field in model.model_fields.values():
        path = f"{member}.{field.alias}"
        if path in EDITABLE or path == "training.steps":
            continue
        now, before = f"self.spec.{path}", f"oldSelf.spec.{path}"
        same = f"{now} == {before}"
        if field.default is None:  # has no default of the server's either, so it may be absent from both
            same = f"has({now}) == has({before}) && (!has({now}) || {same})"
        rules.append(
            rule(
                f"!({STARTED}) || ({same})",
                f"spec.{path} cannot change once the run has started: set it back, or start a new run under another "
                "name",
                field_path=f".spec.{path}",
            )
        )
    return rules


HAS_STEPS, HAD_STEPS = "has(self.spec.training.steps)", "has(oldSelf.spec.training.steps)"
RAISED: Final = f"({HAS_STEPS} && {HAD_STEPS} && self.spec.training.steps > oldSelf.spec.training.steps)"

STEPS_KNOWN_OR_NOT: Final = rule(
    f"!({STARTED}) || {HAS_STEPS} == {HAD_STEPS}",
    "spec.training.steps cannot be added or removed once the run has started, for its first attempt has settled how "
    "many there are: set it back, or start a new run under another name",
    field_path=".spec.training.steps",
)
STEPS_ONLY_UP: Final = rule(
    f"!({STARTED}) || !{HAS_STEPS} || !{HAD_STEPS} || self.spec.training.steps >= oldSelf.spec.training.steps",
    "spec.training.steps can only be raised once the run has started: set it back or higher",
    field_path=".spec.training.steps",
)
STEPS_NOT_WITH_AN_END: Final = rule(
    f"!({STARTED}) || !{RAISED} || self.spec.training.schedule == 'constant'",
    "spec.training.steps cannot be raised once a run has started whose schedule is not constant, for all others look "
    "at the last step from the first one on: set it back",
    field_path=".spec.training.steps",
)
STEPS_NOT_AFTER_THE_END: Final = rule(
    f"!has(oldSelf.status) || !has(oldSelf.status.completionTime) || !{RAISED}",
    "spec.training.steps cannot be raised once the run has ended: set it back, or start a new run under another name",
    field_path=".spec.training.steps",
)

LORAFINETUNE: Final = Kind(
    kind="LoRAFineTune",
    plural="lorafinetunes",
    short="lft",
    scope="Namespaced",
    description="A LoRAFineTune is one run: it fine-tunes an SDXL LoRA on interruptible GPUs, goes on from its last "
    "checkpoint whenever a node is taken away, and ends with a verified LoRA in your bucket.",
    spec=LoRAFineTuneSpec,
    status=LoRAFineTuneStatus,
    columns=(
        Column("Phase", ".status.phase", "What the run is doing, in one word."),
        Column("Progress", ".status.progress", "Steps done in percent."),
        Column("Step", ".status.stepOf", "Steps done / to do."),
        Column("Loss", ".status.loss", "Loss of the last reported step."),
        Column("Pool", ".status.pool", "GPUPool of the newest attempt."),
        Column("Preemptions", ".status.preemptions", "Attempts that the platform took away.", "integer"),
        Column("Cost", ".status.cost", "What the run has cost so far."),
        Column("Saved", ".status.saved", "How much less that is than on demand."),
        Column("ETA", ".status.eta", "Time to the last step at the present speed."),
        AGE,
        Column("Attempt", ".status.attempt", "Number of the newest attempt.", "integer", wide=True),
        Column("Checkpoint", ".status.checkpoint.step", "Step of the newest checkpoint.", "integer", wide=True),
        Column("Message", ".status.message", "What the run is doing or waiting for.", wide=True),
    ),
    selectable=(".spec.suspend", ".status.phase", ".status.pool"),
    rules=(
        *_frozen("baseModel", BaseModelSpec),
        *_frozen("dataset", DatasetSpec),
        *_frozen("training", Training),
        STEPS_KNOWN_OR_NOT,
        STEPS_ONLY_UP,
        STEPS_NOT_WITH_AN_END,
        STEPS_NOT_AFTER_THE_END,
        *_frozen("storage", StorageSpec),
    ),
)

GPUPOOL: Final = Kind(
    kind="GPUPool",
    plural="gpupools",
    short="gpool",
    scope="Cluster",
    description="A GPUPool is a set of GPU nodes that share selector, tolerations, price and capacity type. Runs name "
    "pools in the order in which they want them tried, or use those marked default.",
    spec=GPUPoolSpec,
    columns=(
        Column("Capacity", ".spec.capacityType", "Spot or OnDemand."),
        Column("Price", ".spec.pricePerHour", "Price of one node for one hour."),
        Column("GPU", ".spec.gpu.product", "Product name of its GPUs."),
        Column("Default", ".spec.default", "Whether runs that name no pool may use it.", "boolean"),
        AGE,
    ),
)

KINDS: Final = (LORAFINETUNE, GPUPOOL)
