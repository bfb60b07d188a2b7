"""What may not change any more once a run has started: CEL rules over the new object and the old one."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from lorafinetune.api.finetune import StorageSpec
from lorafinetune.api.inputs import BaseModelSpec, DatasetSpec
from lorafinetune.api.pictures import ValidationSpec
from lorafinetune.api.words import Extra, rule
from lorafinetune.contract.training import Training

STARTED: Final = "has(oldSelf.status) && has(oldSelf.status.startTime)"

EDITABLE: Final = frozenset(
    {
        "baseModel.cache",
        "baseModel.credentialsSecret",
        "dataset.keepClassImages",
        "storage.credentialsSecret",
        "storage.onDelete",
    }
)
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


def _comparable(field: str) -> Extra:
    """Return the rule that the pictures of one run are made alike, so that those of different steps can be compared."""
    now, before = f"self.spec.validation.{field}", f"oldSelf.spec.validation.{field}"
    return rule(
        f"!({STARTED}) || !has(self.spec.validation) || !has(oldSelf.spec.validation) || {now} == {before}",
        f"spec.validation.{field} cannot change once the run has started, for pictures of different steps are to be "
        "compared: set it back, or remove spec.validation",
        field_path=f".spec.validation.{field}",
    )


AFTER_THE_START: Final = (
    *_frozen("baseModel", BaseModelSpec),
    *_frozen("dataset", DatasetSpec),
    *_frozen("training", Training),
    STEPS_KNOWN_OR_NOT,
    STEPS_ONLY_UP,
    STEPS_NOT_WITH_AN_END,
    STEPS_NOT_AFTER_THE_END,
    *(_comparable(field.alias or "") for field in ValidationSpec.model_fields.values() if field.alias != "everySteps"),
    *_frozen("storage", StorageSpec),
)
"""All rules over a run and what it was before."""
