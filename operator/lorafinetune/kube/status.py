"""The one status write of a pass: server-side apply, one field manager, with the version that was decided upon."""

from __future__ import annotations

from typing import Any, Final

from lorafinetune.api import API_VERSION
from lorafinetune.api.status import Condition, ConditionStatus, LoRAFineTuneStatus
from lorafinetune.engine.conditions import ConditionType
from lorafinetune.engine.times import stamp
from lorafinetune.kube.client import RUNS, Cluster

Object = dict[str, Any]

MANAGER: Final = "lorafinetune"
COMPLAINER: Final = "lorafinetune-complaint"
"""Field manager of what is said about a run that cannot be read."""
WORDS: Final = frozenset(
    {"phase", "message", "activity", "activitySince", "times", "conditions", "observedGeneration", "prefix"}
)
"""Members of a status that say what is going on, and change nothing of what is done next."""
NOTHING_YET: Final = frozenset({"preemptions", "failures", "progress", "step", "steps", "stepOf"})
"""Members of a first status that only say that nothing has happened."""


def parse(run: Object) -> LoRAFineTuneStatus:
    """Return the status as stored; an absent one is empty."""
    return LoRAFineTuneStatus.model_validate(run.get("status") or {})


def differs(stored: LoRAFineTuneStatus, status: LoRAFineTuneStatus) -> bool:
    """Whether *status* says anything else than what is stored."""
    return stored != status and stored.to_json() != status.to_json()


def only_words(stored: LoRAFineTuneStatus, status: LoRAFineTuneStatus) -> bool:
    """Whether *status* differs from what is stored in no more than what is said about the run, and when."""
    before, after = stored.to_json(), status.to_json()
    words = WORDS if stored.phase is not None else WORDS | NOTHING_YET
    return all(before.get(name) == after.get(name) for name in (before.keys() | after.keys()) - words)


async def write(cluster: Cluster, run: Object, status: LoRAFineTuneStatus) -> Object:
    """Apply *status* if the run is still as it was when it was decided upon; raises Conflict if it is not."""
    return await cluster.apply(RUNS, _body(run, status.to_json()), manager=MANAGER, subresource="status")


async def complain(cluster: Cluster, run: Object, reason: str, message: str, now: float) -> Object | None:
    """Say on a run that cannot be gone on with why that is, and leave the rest as it is; None if it says so already.

    By a manager of its own, so that nothing is taken away; the next status that is written whole takes the words over.
    """
    stored = run.get("status") or {}
    said = [one.get("message") for one in stored.get("conditions") or () if one.get("type") == ConditionType.ACCEPTED]
    if stored.get("message") == message and said == [message]:
        return None
    condition = Condition(
        type=ConditionType.ACCEPTED.value,
        status=ConditionStatus.FALSE,
        reason=reason,
        message=message,
        last_transition_time=stamp(now),
        observed_generation=run["metadata"].get("generation", 1),
    )
    words = {"message": message, "conditions": [condition.to_json()]}
    return await cluster.apply(RUNS, _body(run, words), manager=COMPLAINER, subresource="status")


def _body(run: Object, status: Object) -> Object:
    """Return *status* as an apply of it, which is refused if the run is another by now."""
    metadata = run["metadata"]
    names = ("name", "namespace", "uid", "resourceVersion")
    about = {name: metadata[name] for name in names}
    return {"apiVersion": API_VERSION, "kind": "LoRAFineTune", "metadata": about, "status": status}
