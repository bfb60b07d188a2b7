"""Objects as stores keep them: what nobody reads is left out, and words that stand in all of them are held once.

Each JSON document is decoded with strings of its own, its keys too: of ten thousand runs those are most of the memory.
"""

from __future__ import annotations

import sys
from typing import Any, Final

Object = dict[str, Any]

SHARED_CHARACTERS: Final = 32
"""Longer strings (UIDs, URIs, sentences) are rarely the same twice."""
POD_SPEC: Final = ("nodeName", "schedulingGates", "affinity")
"""What is read of a pod's spec (``kube.seen``). Its environment alone holds a run config of up to 64 KiB."""


def slim(thing: Object) -> Object:
    """Return *thing* without managedFields, sharing its short strings with all others."""
    metadata = {key: value for key, value in thing["metadata"].items() if key != "managedFields"}
    slimmed: Object = _shared({**thing, "metadata": metadata})
    return slimmed


def slim_pod(pod: Object) -> Object:
    """Return *pod* with no more of its spec than is read."""
    spec = pod.get("spec", {})
    return slim({**pod, "spec": {name: spec[name] for name in POD_SPEC if name in spec}})


def _shared(value: Any) -> Any:
    if isinstance(value, str):
        return sys.intern(value) if len(value) <= SHARED_CHARACTERS else value
    if isinstance(value, dict):
        return {sys.intern(key): _shared(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shared(one) for one in value]
    return value
