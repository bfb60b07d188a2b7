"""How a model says to the API server what a plain bound cannot: rules over several fields, and patterns in words.

The API server refuses a value that misses its pattern by quoting the regular expression, which tells nobody what to
write instead. So every pattern comes with a sentence (:func:`worded`), and the schema carries both as one CEL rule.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

Extra: TypeAlias = dict[str, Any]

VALIDATIONS: Final = "x-kubernetes-validations"
PATTERN_SENTENCE: Final = "x-lorafinetune-pattern-sentence"


def rule(
    expression: str, message: str, *, field_path: str | None = None, message_expression: str | None = None
) -> Extra:
    """Return one CEL rule: *expression* is true of good values, *message* names the field and says what is right.

    *field_path* (``.endpoint``) is the field that the refusal points at, where that is not the one with the rule.
    *message_expression* says it more exactly, where one rule holds several things; *message* stands in if it fails.
    """
    made = {"rule": expression, "message": message}
    if message_expression is not None:
        made["messageExpression"] = message_expression
    return made if field_path is None else made | {"fieldPath": field_path}


def ruled(*rules: Extra) -> Extra:
    """Return the ``json_schema_extra`` of a field or model with these rules."""
    return {VALIDATIONS: list(rules)}


def worded(sentence: str, *rules: Extra) -> Extra:
    """Return the ``json_schema_extra`` of a field with a pattern: *sentence* says in words what the pattern takes."""
    return {PATTERN_SENTENCE: sentence} | (ruled(*rules) if rules else {})


def listed(kind: str, *keys: str) -> Extra:
    """Return the ``json_schema_extra`` of a list: a ``set``, or a ``map`` with these keys. Neither takes doubles."""
    made: Extra = {"x-kubernetes-list-type": kind}
    return made | {"x-kubernetes-list-map-keys": list(keys)} if keys else made
