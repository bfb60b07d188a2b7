"""What is wrong with a run config as it is written: every field at once, in the spec's words, with the way out.

It is for who runs the trainer by hand: on Kubernetes the API server has refused the same before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lorafinetune_trainer import fieldnames

MAX_GIVEN: Final = 60
"""Characters of what was given that a sentence repeats."""
_BY_HAND: Final = {
    "storage.credentialsSecret": "that is for Kubernetes: name a folder with the keys in storage.credentials, or have "
    "them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    "baseModel.credentialsSecret": "that is for Kubernetes: name a folder with a file HF_TOKEN in "
    "baseModel.hubCredentials",
    "storage.onDelete": "that is for Kubernetes: remove it; by hand nothing is deleted at the end",
    "placement": "that is for Kubernetes: remove it",
    "suspend": "that is for Kubernetes: remove it",
    "apiVersion": "this looks like a Kubernetes resource: give what stands under spec, and run",
    "kind": "",
    "metadata": "",
    "spec": "",
}
"""Fields of the resource that a run config has not. Those without words are said by another one."""
_FORMS: Final = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "list": "a list",
    "model": "an object, { ... }",
    "dict": "an object, { ... }",
}
"""What a value should be, by the beginning of pydantic's word for the error."""


def complaints(error: ValidationError) -> list[str]:
    """Return a sentence for each thing that is wrong, in the order of the fields."""
    found = [sentence for one in error.errors(include_url=False) if (sentence := _sentence(one))]
    return list(dict.fromkeys(found))


def twice(text: str) -> list[str]:
    """Return a sentence for each field that stands more than once in one object of *text*; none where it is no JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_Members)
    except (ValueError, RecursionError):  # that is complained about already
        return []
    return list(
        dict.fromkeys(f"{_path(place)} stands there more than once: keep one of them" for place in _same(value))
    )


class _Members(list[tuple[str, Any]]):
    """The members of a JSON object as they are written: a dict would keep the last one of a name."""


def _same(value: object, *place: int | str) -> Iterator[tuple[int | str, ...]]:
    """Yield the places of members whose name an earlier one of the same object has."""
    seen: set[int | str] = set()
    members = value if isinstance(value, _Members) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        if name in seen:
            yield *place, name
        seen.add(name)
        yield from _same(inner, *place, name)


def _sentence(error: ErrorDetails) -> str:
    path, kind, about = _path(error["loc"]), error["type"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"it is not JSON: {about.get('error', error['msg'])}"
    if kind == "missing":
        return f"{path} is missing: add it"
    if kind == "extra_forbidden":
        return _unknown(error["loc"])
    if not path:
        return "it must be an object, { ... }"
    return f"{path} is {_given(error['input'])}, and must be {_wanted(kind, about)}{_why(kind, error['loc'])}"


def _wanted(kind: str, about: dict[str, Any]) -> str:
    """Return what the value must be."""
    bounds = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}
    for name, words in bounds.items():
        if name in about:
            return words.format(_number(about[name]))
    if "multiple_of" in about:
        return f"a multiple of {_number(about['multiple_of'])}"
    if "expected" in about:  # pydantic's own list: 'a', 'b' or 'c'
        return str(about["expected"])
    if kind == "too_short":
        return f"a list of at least {about['min_length']}"
    if kind == "too_long":
        return f"a list of at most {about['max_length']}"
    if kind == "string_too_short":
        return "a text that is not empty"
    if kind == "string_too_long":
        return f"at most {about['max_length']} characters long"
    if kind == "string_pattern_mismatch":
        return "letters, digits, dots, dashes and underscores"
    return next((words for name, words in _FORMS.items() if kind.startswith(name)), kind.replace("_", " "))


def _why(kind: str, place: Sequence[int | str]) -> str:
    """Return what else is known: why only one value is allowed."""
    found = _field(place)
    if kind != "literal_error" or found is None or not found.description:
        return ""
    reason = " ".join(found.description.split()).partition(": ")[2].rstrip(".")
    return f" ({reason})" if reason else ""


def _unknown(place: Sequence[int | str]) -> str:
    """Return what is said of a field that there is not."""
    path, name = _path(place), str(place[-1])
    if path in _BY_HAND:
        return f"{path} is no field here: {_BY_HAND[path]}" if _BY_HAND[path] else ""
    above = path.rpartition(".")[0]
    if found := fieldnames.meant(above, name):
        return f"{path} is no field: write {found}"
    return f"{path} is no field: remove it (there are {fieldnames.listed(above)})"


def _field(place: Sequence[int | str]) -> FieldInfo | None:
    path = ".".join(one for one in place if isinstance(one, str))
    return next((one for name, one in fieldnames.every() if name == path), None)


def _path(place: Sequence[int | str]) -> str:
    """Return ``validation.prompts[1]`` of its parts."""
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place).removeprefix(".")


def _given(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_GIVEN else f"{text[:MAX_GIVEN]}..."


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
