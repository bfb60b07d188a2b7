"""The renderer: what pydantic says, in the API server's words, or a refusal to render it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field

from lorafinetune.api.crd import definition
from lorafinetune.api.kinds import KINDS
from lorafinetune.api.render import files
from lorafinetune.api.schema import UnstructuralError, structural
from lorafinetune.api.words import VALIDATIONS, rule, ruled, worded
from lorafinetune.contract.model import Model

ROOT = Path(__file__).parents[2]


def test_generated_files_are_not_stale() -> None:
    stale = [name for name, text in files(ROOT).items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, "run `make generate`"


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield from walk(schema[inner], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_field_has_a_description_that_ends_as_a_sentence(kind: Any) -> None:
    root = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields = [(path, field) for path, field in walk(root, kind.kind) if not path.endswith("[]")]
    without = [
        path
        for path, field in fields
        if not path.startswith(f"{kind.kind}.metadata") and not field.get("description", "").endswith(".")
    ]
    assert len(fields) > 15
    assert without == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_rule_has_words_and_points_at_a_field(kind: Any) -> None:
    root = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found = 0
    for path, schema in walk(root, kind.kind):
        for one in schema.get(VALIDATIONS, ()):
            found += 1
            assert len(one["message"]) > 20, (path, one)
            assert ("fieldPath" in one) or schema["type"] != "object" or "additionalProperties" in schema, (path, one)
    assert found > 5


class Inner(Model):
    """An inner thing."""

    size: Annotated[int, Field(ge=1, le=9)] = 3
    """Its size."""


def rendered(annotation: Any, **default: Any) -> dict[str, Any]:
    made = type(
        "Outer", (Model,), {"__annotations__": {"field": Annotated[annotation, Field(description="It.", **default)]}}
    )
    return dict(structural(made)["properties"]["field"])


@pytest.mark.parametrize(
    ("annotation", "want"),
    [
        pytest.param(
            Annotated[int, Field(gt=0, le=5)] | None,
            {
                "type": "integer",
                "minimum": 0,
                "exclusiveMinimum": True,
                "maximum": 5,
                "description": "It. More than 0, at most 5.",
            },
            id="optional by absence, exclusive bounds as a flag",
        ),
        pytest.param(
            Literal["one"], {"type": "string", "enum": ["one"], "description": "It."}, id="a constant as an enum of one"
        ),
        pytest.param(
            Literal[1],
            {"type": "number", "description": "It.", VALIDATIONS: [rule("self == 1.0", "It.")]},
            id="a constant number as a rule in its own words",
        ),
        pytest.param(
            Annotated[set[Annotated[str, Field(max_length=3)]], Field(max_length=2)],
            {
                "type": "array",
                "items": {"type": "string", "maxLength": 3},
                "maxItems": 2,
                "x-kubernetes-list-type": "set",
                "description": "It.",
            },
            id="unique items as a list set",
        ),
        pytest.param(
            Inner,
            {
                "type": "object",
                "properties": {
                    "size": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": 9,
                        "default": 3,
                        "description": "Its size. From 1 to 9. Default: 3.",
                    }
                },
                "description": "It.",
            },
            id="a reference inlined, closed by pruning",
        ),
        pytest.param(
            Annotated[str, Field(max_length=9, pattern='^"a\\d$', json_schema_extra=worded("must be a and a digit"))],
            {
                "type": "string",
                "maxLength": 9,
                "description": "It.",
                VALIDATIONS: [rule('self.matches("^\\"a\\\\d$")', "must be a and a digit")],
            },
            id="a pattern as a rule in words",
        ),
    ],
)
def test_pydantic_in_the_servers_words(annotation: Any, want: dict[str, Any]) -> None:
    assert rendered(annotation) == want


def test_a_member_that_is_all_defaults_is_filled_when_absent() -> None:
    class Outer(Model):
        """Outer."""

        inner: Inner = Field(default_factory=Inner)
        """Inner."""

    assert structural(Outer)["properties"]["inner"]["default"] == {}


def test_a_member_without_defaults_gets_no_empty_object() -> None:
    class Bare(Model):
        """Bare."""

        name: Annotated[str, Field(max_length=3)] | None = None
        """Name."""

    class Outer(Model):
        """Outer."""

        bare: Bare = Field(default_factory=Bare)
        """Bare."""

    assert "default" not in structural(Outer)["properties"]["bare"]


def test_rules_of_model_and_field_add_up() -> None:
    class Ruled(Model):
        """Ruled."""

        model_config = ConfigDict(json_schema_extra=ruled(rule("1 == 1", "of the model")))

    class Outer(Model):
        """Outer."""

        field: Annotated[Ruled, Field(json_schema_extra=ruled(rule("2 == 2", "of the field")))]
        """Field."""

    messages = [one["message"] for one in structural(Outer)["properties"]["field"][VALIDATIONS]]
    assert messages == ["of the model", "of the field"]


class Endless(Model):
    """It contains itself."""

    again: Endless | None = None
    """Itself."""


class Undescribed(Model):
    """Its field has no docstring."""

    field: bool


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        pytest.param(Annotated[str, Field(max_length=9)] | bool, "a union of types", id="union"),
        pytest.param(tuple[bool, bool], "prefixItems", id="tuple"),
        pytest.param(str, "a string needs maxLength", id="string without bound"),
        pytest.param(list[bool], "a array needs maxItems", id="list without bound"),
        pytest.param(dict[str, bool], "a object needs properties or maxProperties", id="map without bound"),
        pytest.param(Endless, "Endless contains itself", id="recursion"),
        pytest.param(Undescribed, r"field\.field: has no description", id="no description"),
        pytest.param(
            Annotated[str, Field(max_length=9, pattern="^a$")],
            "a pattern needs its sentence",
            id="pattern without words",
        ),
    ],
)
def test_what_the_cluster_would_not_check_is_not_rendered(annotation: Any, words: str) -> None:
    with pytest.raises(UnstructuralError, match=words):
        rendered(annotation)
