"""The one status write of a pass: server-side apply, one field manager, with the version that was decided upon."""

from __future__ import annotations

from typing import Any, Final

from lorafinetune.api import API_VERSION
from lorafinetune.api.status import LoRAFineTuneStatus
from lorafinetune.kube.client import RUNS, Cluster

Object = dict[str, Any]

MANAGER: Final = "lorafinetune"


def parse(run: Object) -> LoRAFineTuneStatus:
    """Return the status as stored; an absent one is empty."""
    return LoRAFineTuneStatus.model_validate(run.get("status") or {})


def differs(run: Object, status: LoRAFineTuneStatus) -> bool:
    """Whether *status* says anything else than what is stored."""
    return parse(run).to_json() != status.to_json()


async def write(cluster: Cluster, run: Object, status: LoRAFineTuneStatus) -> Object:
    """Apply *status* if the run is still as it was when it was decided upon; raises Conflict if it is not."""
    metadata = run["metadata"]
    body = {
        "apiVersion": API_VERSION,
        "kind": "LoRAFineTune",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "status": status.to_json(),
    }
    return await cluster.apply(RUNS, body, manager=MANAGER, subresource="status")
