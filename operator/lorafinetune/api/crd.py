"""From a kind to its CustomResourceDefinition: names, schema, columns, and rules over the whole object. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from lorafinetune.api import GROUP, VERSION
from lorafinetune.api.schema import structural
from lorafinetune.api.words import VALIDATIONS, Extra

MAX_NAME = 63
"""A run's and a pool's name also stand in labels of pods, whose values end at 63 characters."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of ``kubectl get``."""

    name: str
    path: str
    description: str
    type: Literal["string", "integer", "date", "boolean"] = "string"
    wide: bool = False
    """Shown only by ``-o wide``."""

    def to_json(self) -> dict[str, Any]:
        """Return the column as additionalPrinterColumns has it."""
        made = {"name": self.name, "jsonPath": self.path, "type": self.type, "description": self.description}
        return made | ({"priority": 1} if self.wide else {})


AGE = Column("Age", ".metadata.creationTimestamp", "Time since the object was created.", "date")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of resource of this group."""

    kind: str
    plural: str
    short: str
    scope: Literal["Namespaced", "Cluster"]
    description: str
    spec: type[BaseModel]
    status: type[BaseModel] | None = None
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    rules: tuple[Extra, ...] = ()
    """CEL rules over the whole object, for what spans spec and status."""

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


def definition(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of *kind*."""
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root(kind)},
        "additionalPrinterColumns": [column.to_json() for column in kind.columns],
    }
    if kind.status is not None:
        version["subresources"] = {"status": {}}
    if kind.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {
            "group": GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": [kind.short],
                "categories": ["ml"],
            },
            "versions": [version],
        },
    }


def _root(kind: Kind) -> dict[str, Any]:
    members: dict[str, Any] = {
        "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
        "kind": {"type": "string", "description": f"{kind.kind}."},
        # The API server describes metadata itself, and takes nothing here but a bound on the name.
        "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": MAX_NAME}}},
        "spec": structural(kind.spec),
    }
    if kind.status is not None:
        # One writer writes it whole. Else the API server would keep an owner for each of its fields, which makes the
        # object half as big again and each write of it dearer (docs/bench.md).
        members["status"] = structural(kind.status) | {"x-kubernetes-map-type": "atomic"}
    root = {"type": "object", "description": kind.description, "required": ["spec"], "properties": members}
    return root | ({VALIDATIONS: list(kind.rules)} if kind.rules else {})
