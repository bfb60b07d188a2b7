"""A container's environment, as a kubelet makes it: image, envFrom, env, references, $(NAME)."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from fractions import Fraction
from typing import Any

Json = dict[str, Any]
Fetch = Callable[[str, str], Awaitable[Json | None]]
"""Reads (`configmaps` or `secrets`, name) of the pod's namespace; None where it is missing."""

_REFERENCE = re.compile(r"\$(\$|\(([^()$\s]+)\))")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_QUANTITY = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")
_UNITS: dict[str, Fraction] = {
    **{unit: Fraction(1, 1000**power) for power, unit in enumerate(("m", "u", "n"), start=1)},
    **{unit: Fraction(1000**power) for power, unit in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{unit: Fraction(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}


class ConfigError(Exception):
    """A container cannot be configured (`CreateContainerConfigError`); the message is a kubelet's."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value; an unknown one stays, `$$(NAME)` becomes `$(NAME)`."""

    def replace(found: re.Match[str]) -> str:
        if found[1] == "$":
            return "$"
        return values.get(found[2], found[0])

    return _REFERENCE.sub(replace, text)


def quantity(text: str) -> Fraction:
    """Read a resource quantity such as `1500m`, `2Gi`, `1`. Raises ConfigError."""
    found = _QUANTITY.fullmatch(str(text))
    if not found or found[2] not in _UNITS:
        raise ConfigError(f"quantity {text!r} is not understood")
    return Fraction(found[1]) * _UNITS[found[2]]


def field(pod: Json, path: str) -> str:
    """Return a field of the pod as the downward API gives it. Raises ConfigError."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str((meta.get(subscript[1]) or {}).get(subscript[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = sorted((meta.get(path.partition(".")[2]) or {}).items())
        return "\n".join(f'{key}="{_escape(value)}"' for key, value in entries)
    known: dict[str, str] = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", "127.0.0.1"),
        "status.podIPs": status.get("podIP", "127.0.0.1"),
        "status.hostIP": status.get("hostIP", "127.0.0.1"),
        "status.hostIPs": status.get("hostIP", "127.0.0.1"),
    }
    if path not in known:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return known[path]


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_field(pod: Json, container: Json, reference: Json, capacity: Mapping[str, str]) -> str:
    """Return a container's request or limit as the downward API gives it: divided, rounded up."""
    name = reference.get("containerName") or container["name"]
    owner = next((c for c in pod["spec"]["containers"] if c["name"] == name), None)
    if owner is None:
        raise ConfigError(f"container {name} not found")
    kind, _, resource = str(reference["resource"]).partition(".")
    resources = owner.get("resources", {})
    amount = resources.get(kind, {}).get(resource)
    if amount is None:
        amount = capacity.get(resource, "0") if kind == "limits" else resources.get("limits", {}).get(resource, "0")
    divisor = quantity(reference.get("divisor") or "1") or Fraction(1)
    return str(-(-quantity(amount) // divisor))


async def container_environment(
    pod: Json, container: Json, image: Mapping[str, str], fetch: Fetch, capacity: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that the image, `envFrom` and `env` give a container. Raises ConfigError."""
    values = dict(image)
    for source in container.get("envFrom") or []:
        values |= await _from_source(source, pod, fetch)
    for entry in container.get("env") or []:
        name = entry["name"]
        origin = entry.get("valueFrom")
        if not origin:
            values[name] = expand(entry.get("value", ""), values)
        elif "fieldRef" in origin:
            values[name] = field(pod, origin["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in origin:
            values[name] = resource_field(pod, container, origin["resourceFieldRef"], capacity)
        else:
            found = await _from_key(origin, pod, fetch)
            if found is not None:
                values[name] = found
    return values


async def _from_source(source: Json, pod: Json, fetch: Fetch) -> dict[str, str]:
    reference = source.get("configMapRef") or source.get("secretRef") or {}
    kind = "configmaps" if "configMapRef" in source else "secrets"
    content = await fetch(kind, reference["name"])
    if content is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(_missing(kind, reference["name"]))
    return {source.get("prefix", "") + key: value for key, value in text_content(kind, content).items()}


async def _from_key(origin: Json, pod: Json, fetch: Fetch) -> str | None:
    """Return the value of a configMapKeyRef or secretKeyRef; None where it is optional and missing."""
    kind = "configmaps" if "configMapKeyRef" in origin else "secrets"
    reference = origin.get("configMapKeyRef") or origin.get("secretKeyRef")
    if not reference:
        raise ConfigError(f"valueFrom {sorted(origin)} is not supported")
    content = await fetch(kind, reference["name"])
    if content is None:
        if reference.get("optional"):
            return None
        raise ConfigError(_missing(kind, reference["name"]))
    texts = text_content(kind, content)
    if reference["key"] not in texts:
        if reference.get("optional"):
            return None
        what = "ConfigMap" if kind == "configmaps" else "Secret"
        namespace = pod["metadata"]["namespace"]
        raise ConfigError(f"couldn't find key {reference['key']} in {what} {namespace}/{reference['name']}")
    return texts[reference["key"]]


def _missing(kind: str, name: str) -> str:
    return f'{kind.removesuffix("s")} "{name}" not found'


def text_content(kind: str, content: Json) -> dict[str, str]:
    """Return a ConfigMap's or Secret's entries as text."""
    if kind == "configmaps":
        return dict(content.get("data") or {})
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in (content.get("data") or {}).items()}


def binary_content(kind: str, content: Json) -> dict[str, bytes]:
    """Return a ConfigMap's or Secret's entries as files hold them."""
    encoded = content.get("binaryData" if kind == "configmaps" else "data") or {}
    found = {key: base64.b64decode(value) for key, value in encoded.items()}
    if kind == "configmaps":
        found |= {key: value.encode() for key, value in (content.get("data") or {}).items()}
    return found
