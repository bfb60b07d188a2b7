"""From a pydantic model to a structural schema: what kube-apiserver takes with strict validation, and nothing else.

Pure. What pydantic emits and the API server would refuse (or worse, silently drop) is either put in its words or ends
in :class:`UnstructuralError`, so that a model can never promise a check that the cluster does not make.
"""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from lorafinetune.api.words import PATTERN_SENTENCE, VALIDATIONS, rule

Schema = dict[str, Any]

NOISE: Final = frozenset({"title", "examples", "$schema", "$defs", PATTERN_SENTENCE})
PLAIN: Final = frozenset({
    "type", "description", "default", "enum", "format", "minimum", "maximum", "multipleOf", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties", "required", "properties", "items", "additionalProperties",
    "exclusiveMinimum", "exclusiveMaximum", VALIDATIONS, "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
})  # fmt: skip


class UnstructuralError(TypeError):
    """A model uses something that a structural schema cannot say; the message names the field and the way out."""


class _Defaults(GenerateJsonSchema):
    """Also gives the default of a member whose default is a whole model: ``{}``, to be filled by its own defaults."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        if factory is not None and not schema.get("default_factory_takes_data"):
            made = factory()  # type: ignore[call-arg]
            return made.model_dump(mode="json", by_alias=True, exclude_unset=True) if _is_model(made) else None
        return super().get_default_value(schema)


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of *model*, with every reference inlined; UnstructuralError where there is none."""
    emitted = model.model_json_schema(mode="validation", schema_generator=_Defaults)
    return _convert(emitted, emitted.get("$defs", {}), model.__name__, ())


def has_default(schema: Schema) -> bool:
    """Whether an empty object of this schema would be filled with something."""
    return any("default" in field for field in schema.get("properties", {}).values())


def _convert(node: Schema, defs: dict[str, Schema], path: str, within: tuple[str, ...]) -> Schema:
    node, within = _resolve(node, defs, path, within)
    rules = list(node.get(VALIDATIONS, ()))
    if "pattern" in node:
        sentence = node.get(PATTERN_SENTENCE)
        if not sentence:
            raise UnstructuralError(f"{path}: a pattern needs its sentence, see words.worded")
        rules.insert(0, rule(f"self.matches({json.dumps(node.pop('pattern'))})", sentence))
    made = {key: value for key, value in node.items() if key not in NOISE}
    if made.get("type") == "integer" and "const" in made:
        # As an enum, or an integer, other numbers would be refused without a word: its description says why it is so.
        made["type"] = "number"
        rules.append(rule(f"self == {made.pop('const')}.0", " ".join(made["description"].split())))
    _put_in_words_of_the_server(made)
    low = made.get("minimum")
    if low is not None and low != int(low):
        # The server cuts such a bound to a whole number before it compares a whole number with it: 0 is not below 0.5.
        rules.append(rule(f"self >= {low}", f"should be greater than or equal to {low}"))
    if unknown := sorted(set(made) - PLAIN):
        raise UnstructuralError(f"{path}: {', '.join(unknown)} has no place in a structural schema")
    if "type" not in made:
        raise UnstructuralError(f"{path}: has no single type; use an enum with optional members instead of a union")
    if "description" in made:
        made["description"] = " ".join([*made["description"].split(), *_bounds_in_words(made)])
    if rules:
        made[VALIDATIONS] = rules
    _check_bounds(made, path)
    _convert_members(made, defs, path, within)
    if made.get("default") == {} and not has_default(made):
        del made["default"]
    return made


def _resolve(
    node: Schema, defs: dict[str, Schema], path: str, within: tuple[str, ...]
) -> tuple[Schema, tuple[str, ...]]:
    """Inline a reference and collapse ``T | None``: optional by absence, as everything in Kubernetes."""
    node = dict(node)
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            name = node.pop("$ref").rsplit("/", 1)[-1]
            if name in within:
                raise UnstructuralError(f"{path}: {name} contains itself")
            within, inner = (*within, name), defs[name]
        else:
            choices = [choice for choice in node.pop("anyOf") if choice != {"type": "null"}]
            if len(choices) != 1:
                raise UnstructuralError(f"{path}: a union of types; use an enum with optional members and a rule")
            inner = choices[0]
        rules = [*inner.get(VALIDATIONS, ()), *node.get(VALIDATIONS, ())]
        node = {**inner, **node} | ({VALIDATIONS: rules} if rules else {})
    return node, within


def _put_in_words_of_the_server(made: Schema) -> None:
    if made.get("additionalProperties") is False:
        del made["additionalProperties"]  # the API server prunes what the schema does not name; strict clients refuse
    if made.get("default", 0) is None:
        del made["default"]
    if "const" in made:
        made["enum"] = [made.pop("const")]
    if "enum" in made:
        made.setdefault("type", "string")
    if made.pop("uniqueItems", False):
        made["x-kubernetes-list-type"] = "set"
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in made:
            made[bound], made[exclusive] = made[exclusive], True


def _bounds_in_words(made: Schema) -> list[str]:
    """`kubectl explain` shows neither bounds nor defaults, so the description does."""
    words = []
    low, high, default = made.get("minimum"), made.get("maximum"), made.get("default")
    if low is not None and high is not None:
        words.append(f"More than {low}, at most {high}." if made.get("exclusiveMinimum") else f"From {low} to {high}.")
    if default is not None and made["type"] != "object":
        words.append(f"Default: {json.dumps(default).strip(chr(34))}.")
    return words


def _check_bounds(made: Schema, path: str) -> None:
    """Everything is bounded: what users may write, what CEL may cost, and what etcd must hold."""
    bounded = {
        "string": ("maxLength", "enum", "format"),
        "array": ("maxItems",),
        "object": ("properties", "maxProperties"),
    }
    if (needed := bounded.get(made["type"])) and not any(key in made for key in needed):
        raise UnstructuralError(f"{path}: a {made['type']} needs {' or '.join(needed)}")


def _convert_members(made: Schema, defs: dict[str, Schema], path: str, within: tuple[str, ...]) -> None:
    if "properties" in made:
        made["properties"] = {
            name: _convert(field, defs, f"{path}.{name}", within) for name, field in made["properties"].items()
        }
        for name, field in made["properties"].items():
            if not field.get("description"):
                raise UnstructuralError(f"{path}.{name}: has no description; write a docstring under it")
    for inner, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if inner in made:
            made[inner] = _convert(made[inner], defs, path + suffix, within)


def _is_model(value: object) -> bool:
    return isinstance(value, BaseModel)
