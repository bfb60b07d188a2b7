"""What kopf may remember on objects: nothing. No handler of ours asks what has changed, or is tried again.

Left to itself kopf copies each object three times at each of its events, to compare it with the one before: that was a
third of the operator's work.
"""

from __future__ import annotations

from typing import Any

import kopf


class NoDifference(kopf.DiffBaseStorage):
    """Knows of no former state of an object, and keeps none."""

    def build(self, **_: Any) -> Any:
        """Return nothing to compare."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Return nothing remembered."""

    def store(self, **_: Any) -> None:
        """Remember nothing."""


class NoProgress(kopf.ProgressStorage):
    """Knows of no handlers that are to be tried again."""

    def fetch(self, **_: Any) -> None:
        """Return nothing remembered."""

    def store(self, **_: Any) -> None:
        """Remember nothing."""

    def purge(self, **_: Any) -> None:
        """Forget nothing."""

    def touch(self, **_: Any) -> None:
        """Touch nothing."""

    def clear(self, *, essence: Any) -> Any:
        """Return what is there to compare as it is."""
        return essence
