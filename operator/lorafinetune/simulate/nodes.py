"""Node objects in virtual time: from Ready over a notice or a silence to gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from lorafinetune.engine.observation import NodeSeen

NOTICE: Final = "karpenter.sh/disrupted"
"""The mark that a node carries from its notice on."""


class Nodes:
    """The nodes that there are, by name, as the API server would show them."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeSeen] = {}
        self.silent = 0
        """How many are not Ready."""

    def __len__(self) -> int:
        return len(self._nodes)

    def among(self, names: Iterable[str]) -> dict[str, NodeSeen]:
        """Return those of *names* that there are."""
        return {name: self._nodes[name] for name in names if name in self._nodes}

    def add(self, name: str) -> None:
        """A machine has come up."""
        self._nodes[name] = NodeSeen(name, ready=True)

    def mark(self, name: str) -> None:
        """Its platform says that it will be taken."""
        self._nodes[name] = replace(self._nodes[name], notice=NOTICE)

    def fall_silent(self, name: str, now: float) -> None:
        """It has sent nothing for as long as the control plane waits."""
        self._nodes[name] = replace(self._nodes[name], ready=False, not_ready_since=now)
        self.silent += 1

    def forget(self, name: str) -> None:
        """Its object is deleted, if it is there."""
        gone = self._nodes.pop(name, None)
        if gone is not None and not gone.ready:
            self.silent -= 1
