"""The two kinds, whole: LoRAFineTune and GPUPool, with their columns and rules."""

from __future__ import annotations

from typing import Final

from lorafinetune.api.crd import AGE, Column, Kind
from lorafinetune.api.finetune import LoRAFineTuneSpec
from lorafinetune.api.frozen import AFTER_THE_START
from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.api.poolstatus import GPUPoolStatus
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
        Column(
            "ETA",
            ".status.eta",
            "Time to the verified LoRA, at the present pace and with as many disturbances as so far.",
        ),
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
    status=GPUPoolStatus,
    columns=(
        Column("Capacity", ".spec.capacityType", "Spot or OnDemand."),
        Column("Price", ".spec.pricePerHour", "Price of one node for one hour."),
        Column("GPU", ".spec.gpu.product", "Product name of its GPUs."),
        Column("Default", ".spec.default", "Whether runs that name no pool may use it.", "boolean"),
        Column("State", ".status.state", "Open, Dry or Full."),
        Column("Live", ".status.live", "Attempts that are on it, or wait for a node of it.", "integer"),
        AGE,
        Column("Lifetime", ".status.lifetime", "How long its nodes last until they are taken back.", wide=True),
        Column("Message", ".status.message", "Why it is dry or full, and until when.", wide=True),
    ),
)

KINDS: Final = (LORAFINETUNE, GPUPOOL)
