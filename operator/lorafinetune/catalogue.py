"""The GPUPools as their specs: read once, and again when one of them has changed, for every pass asks for them."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from lorafinetune.api.gpupool import GPUPoolSpec
from lorafinetune.kube.store import Store

_log = logging.getLogger(__name__)


class Catalogue:
    """Reads the pools of a store. Whoever hears of a change says so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, GPUPoolSpec] | None = None

    def changed(self) -> None:
        """Read the store anew the next time."""
        self._read = None

    def pools(self) -> dict[str, GPUPoolSpec]:
        """Return the pools that can be read; one that cannot is left out with a log line, for others must go on."""
        if self._read is None:
            self._read = {}
            for pool in self._store:
                name = pool["metadata"]["name"]
                try:
                    self._read[name] = GPUPoolSpec.model_validate(pool["spec"])
                except ValidationError as error:
                    _log.warning("GPUPool %s cannot be read: %s", name, error.errors()[0]["msg"])
        return self._read
