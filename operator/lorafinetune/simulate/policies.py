"""Ways to place runs that are compared: from the user's own manifest to the plainest there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Placement = Callable[[Sequence[str], Sequence[str], Mapping[str, Any]], Mapping[str, Any]]
"""From the names of the spot pools, those of the on-demand pools and the user's spec to spec.placement."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to place runs."""

    name: str
    words: str
    placement: Placement
    needs_spot: bool = True
    needs_on_demand: bool = False
    keeps_deadline: bool = False
    """Whether the operator is told the deadline: spec.limits.deadline."""


def _first(spot: Sequence[str], _on_demand: Sequence[str], _body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"pools": spot[:1]}


def _any(spot: Sequence[str], _on_demand: Sequence[str], _body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"pools": list(spot), "order": "CheapestFirst"}


def _fallback(spot: Sequence[str], on_demand: Sequence[str], body: Mapping[str, Any]) -> Mapping[str, Any]:
    fallback = {"pools": list(on_demand), "afterPending": "20m"}
    return {**_any(spot, on_demand, body), "onDemand": fallback}


def _deadline(spot: Sequence[str], on_demand: Sequence[str], body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**_any(spot, on_demand, body), "onDemand": {"pools": list(on_demand), "whenDeadlineNeedsIt": True}}


def _on_demand(_spot: Sequence[str], on_demand: Sequence[str], _body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"pools": list(on_demand)}


def _configured(_spot: Sequence[str], _on_demand: Sequence[str], body: Mapping[str, Any]) -> Mapping[str, Any]:
    return body.get("placement") or {}


CONFIGURED: Final = Policy("as-configured", "as the manifest says", _configured, needs_spot=False, keeps_deadline=True)
BUILT_IN: Final = (
    Policy("spot-one", "the first spot pool, nothing else", _first),
    Policy("spot-any", "all spot pools, the cheapest first", _any),
    Policy("fallback", "the same, on-demand after 20 minutes without spot", _fallback, needs_on_demand=True),
    Policy(
        "deadline",
        "the same, on-demand only when the deadline needs it",
        _deadline,
        needs_on_demand=True,
        keeps_deadline=True,
    ),
    Policy("on-demand", "on-demand only", _on_demand, needs_spot=False, needs_on_demand=True),
)
POLICIES: Final = {policy.name: policy for policy in (CONFIGURED, *BUILT_IN)}
