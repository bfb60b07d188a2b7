"""GPUPool: GPU nodes that share selector, tolerations, price and capacity type. Cluster-scoped."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from lorafinetune.api.durations import Duration
from lorafinetune.api.places import NAME, NAME_SENTENCE
from lorafinetune.api.words import listed, rule, ruled, worded
from lorafinetune.contract.model import OpenModel

DOMAIN = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
KEY = rf"^({DOMAIN}/)?{WORD}$"
KEY_SENTENCE = (
    "must be name or domain/name, such as nvidia.com/gpu: letters, digits, -, _ and ., the domain in lower case"
)
PRICE = r"^[0-9]{1,6}([.][0-9]{1,6})?$"


def price_sentence(example: str) -> str:
    """Return in words what the pattern of prices takes."""
    return (
        "must be a decimal number in quotes, with at most 6 digits before and 6 after the point, without currency, "
        f'such as "{example}"'
    )


LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=rf"^({WORD})?$",
        json_schema_extra=worded("must be a label's value: at most 63 letters, digits, -, _ and ., or empty"),
    ),
]


class CapacityType(StrEnum):
    """What the platform may do with a node."""

    SPOT = "Spot"
    ON_DEMAND = "OnDemand"


class TolerationOperator(StrEnum):
    """How a toleration's key meets a taint's."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(OpenModel):
    """One taint that the pool's nodes carry, as in a pod's spec.tolerations."""

    model_config = ConfigDict(
        json_schema_extra=ruled(
            rule(
                "self.operator == 'Equal' || !has(self.value)",
                "a toleration's value only goes with operator Equal: remove value, or operator Exists",
                field_path=".value",
            )
        )
    )

    key: Annotated[str, Field(max_length=317, pattern=KEY, json_schema_extra=worded(KEY_SENTENCE))]
    """The taint's key, for example nvidia.com/gpu."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """Exists (any value) or Equal (the taint's value must be the one given)."""
    value: LabelValue | None = None
    """The taint's value, with operator Equal."""
    effect: TaintEffect | None = None
    """The taint's effect; absent = every effect."""


class GPU(OpenModel):
    """The GPUs that an attempt takes on a node of this pool."""

    resource: Annotated[
        str,
        Field(
            max_length=317,
            pattern=rf"^{DOMAIN}/{WORD}$",
            json_schema_extra=worded(
                "must be domain/name of the device plugin's resource, such as nvidia.com/gpu: the domain in lower case"
            ),
        ),
    ] = "nvidia.com/gpu"
    """Name of the extended resource that the device plugin registers."""
    count: Literal[1] = 1
    """Must be 1: an attempt trains on one GPU."""
    product: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """The GPU's product name, for example RTX-4090: pools with equal products are compared in price."""
    memory_gi_b: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Memory of one GPU in GiB."""


class GPUPoolSpec(OpenModel):
    """What the pool's nodes look like and cost."""

    capacity_type: CapacityType
    """Spot (the platform may take a node back at any time) or OnDemand."""
    node_selector: Annotated[
        dict[str, LabelValue],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra=ruled(
                rule(
                    f"self.all(key, key.size() <= 317 && key.matches({json.dumps(KEY)}))",
                    f"spec.nodeSelector has a key that is no label: each {KEY_SENTENCE}",
                )
            ),
        ),
    ]
    """Labels that the pool's nodes carry; attempts are scheduled to nodes with all of them."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Taints of the pool's nodes that attempts tolerate."""
    gpu: GPU = Field(default_factory=GPU)
    """The GPUs that an attempt takes."""
    price_per_hour: Annotated[
        str,
        Field(
            max_length=13,
            pattern=PRICE,
            json_schema_extra=worded(price_sentence("0.348")),
        ),
    ]
    """Price of one node for one hour in your currency, as a decimal number in quotes, such as "0.348"; "0" where it
    costs nothing."""
    default: bool = False
    """Whether runs that name no pool may use this one."""
    allowed_namespaces: (
        Annotated[
            list[Annotated[str, Field(max_length=63, pattern=NAME, json_schema_extra=worded(NAME_SENTENCE))]],
            Field(
                max_length=256,
                json_schema_extra=listed("set")
                | ruled(
                    rule(
                        "self.size() > 0",
                        "lists nobody: name the namespaces whose runs may use the pool, or leave the field out for all",
                    )
                ),
            ),
        ]
        | None
    ) = None
    """Namespaces whose runs may use this pool. Absent = all."""
    max_concurrent_attempts: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Attempts of all runs that may be on this pool at once; others wait. Absent = any number."""
    provisioning_timeout: Duration = "10m"
    """How long an attempt waits for a node before the pool counts as dry, where nothing says so earlier."""
