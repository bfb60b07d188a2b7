"""The two kinds, whole: LoRAFineTune and GPUPool, with their columns and rules."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.crd import AGE, Column, Kind
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.frozen import AFTER_THE_START
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.status import LoRAFineTuneStatus

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
        Column(
            "Checkpoint",
            ".status.checkpoint.step",
            "Step of the newest checkpoint, while there are any.",
            "integer",
            wide=True,
        ),
        Column("Message", ".status.message", "What the run is doing or waiting for.", wide=True),
    ),
    selectable=(".spec.suspend", ".status.phase", ".status.pool"),
    rules=AFTER_THE_START,
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
