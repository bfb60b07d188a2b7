"""The base of everything that crosses a border as JSON: camelCase outside, snake_case inside, frozen, closed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A frozen value with camelCase JSON names that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, camelCase, without absent members."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class OpenModel(Model):
    """A value that a newer writer may have given more members: they are ignored, so that versions can be mixed."""

    model_config = ConfigDict(extra="ignore")


class CarriedModel(Model):
    """A value that is read, changed and written back: members that a newer writer gave it go with it, unread."""

    model_config = ConfigDict(extra="allow")
