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


def _fields(member: str, model: type[BaseModel]) -> dict[str, str]:
    """Return for each field of *member* that may not change the expression that is true where it is as it was."""
    same = {}
    for field in model.model_fields.values():
        path = f"{member}.{field.alias}"
        if path in EDITABLE or path == "training.steps":
            continue
        now, before = f"self.spec.{path}", f"oldSelf.spec.{path}"
        same[path] = f"{now} == {before}"
        if field.default is None:  # has no default of the server's either, so it may be absent from both
            same[path] = f"has({now}) == has({before}) && (!has({now}) || {same[path]})"
    return same


def _alike(member: str, same: dict[str, str], sentence: str, *, unless: str = "") -> Extra:
    """Return one rule for all fields of *member*, whose refusal names the first that has changed.

    One, and the whole member compared first: the API server evaluates rules over the object at each write of a status
    too, and the comparison of one more field costs it more than all the rest of such a rule (docs/bench.md).
    """
    whole = f"self.spec.{member} == oldSelf.spec.{member}"
    fields = " && ".join(f"({expression})" for expression in same.values())
    *others, last = same
    changed = "".join(f"!({same[path]}) ? 'spec.{path}' : " for path in others) + f"'spec.{last}'"
    return rule(
        f"!({STARTED}) || {unless}{whole} || ({fields})",
        f"spec.{member} {sentence}",
        field_path=f".spec.{member}",
        message_expression=f"({changed}) + ' {sentence}'",
    )


def _frozen(member: str, model: type[BaseModel]) -> Extra:
    return _alike(
        member,
        _fields(member, model),
        "cannot change once the run has started: set it back, or start a new run under another name",
    )


HAS_STEPS, HAD_STEPS = "has(self.spec.training.steps)", "has(oldSelf.spec.training.steps)"
NOW, BEFORE = "self.spec.training.steps", "oldSelf.spec.training.steps"
ENDED: Final = "has(oldSelf.status) && has(oldSelf.status.completionTime)"
CONSTANT: Final = "self.spec.training.schedule == 'constant'"

STEPS: Final = rule(
    f"{HAS_STEPS} == {HAD_STEPS} && (!{HAS_STEPS} || {NOW} == {BEFORE}"
    f" || {NOW} > {BEFORE} && !({ENDED}) && (!({STARTED}) || {CONSTANT})"
    f" || {NOW} < {BEFORE} && !({STARTED}))"
    f" || {HAS_STEPS} != {HAD_STEPS} && !({STARTED})",
    "spec.training.steps can only be raised once the run has started: set it back or higher",
    field_path=".spec.training.steps",
    message_expression=(
        f"{HAS_STEPS} != {HAD_STEPS}"
        " ? 'spec.training.steps cannot be added or removed once the run has started, for its first attempt has"
        " settled how many there are: set it back, or start a new run under another name'"
        f" : {NOW} < {BEFORE}"
        " ? 'spec.training.steps can only be raised once the run has started: set it back or higher'"
        f" : {ENDED}"
        " ? 'spec.training.steps cannot be raised once the run has ended: set it back, or start a new run under another"
        " name'"
        " : 'spec.training.steps cannot be raised once a run has started whose schedule is not constant, for all others"
        " look at the last step from the first one on: set it back'"
    ),
)
"""Steps are neither added nor removed nor lowered after the start; raised only until the end, on a constant rate."""

_PICTURES = [field.alias for field in ValidationSpec.model_fields.values() if field.alias != "everySteps"]
COMPARABLE: Final = _alike(
    "validation",
    {f"validation.{name}": f"self.spec.validation.{name} == oldSelf.spec.validation.{name}" for name in _PICTURES},
    "cannot change once the run has started, for pictures of different steps are to be compared: set it back, or "
    "remove spec.validation",
    unless="!has(self.spec.validation) || !has(oldSelf.spec.validation) || ",
)
"""The pictures of one run are made alike, so that those of different steps can be compared."""

AFTER_THE_START: Final = (
    _frozen("baseModel", BaseModelSpec),
    _frozen("dataset", DatasetSpec),
    _frozen("training", Training),
    STEPS,
    COMPARABLE,
    _frozen("storage", StorageSpec),
)
"""All rules over a run and what it was before."""
