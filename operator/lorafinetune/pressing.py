"""What news is urgent: that after which a pod may have to be made or ended. All else can wait for that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorafinetune.kube.store import Change

Object = dict[str, Any]


def of_run(change: Change) -> bool:
    """Whether a run is new, gone, being deleted, or has another spec: not, if only its status has changed."""
    old, new = change.old, change.new
    if old is None or new is None:
        return True
    return any(
        old["metadata"].get(name) != new["metadata"].get(name) for name in ("uid", "generation", "deletionTimestamp")
    )


def of_pod(change: Change) -> bool:
    """Whether a pod has ended, vanished, or is being deleted: not, if it only gets on."""
    old, new = change.old, change.new
    if new is None:
        return True
    return _ends(new) and (old is None or not _ends(old) or old["metadata"]["uid"] != new["metadata"]["uid"])


def lacks_pod(run: Object, pods: Iterable[Object]) -> bool:
    """Whether a run that is not at rest has no pod that lives: what an operator that starts looks at first."""
    at_rest = run.get("spec", {}).get("suspend") or (run.get("status") or {}).get("completionTime")
    return not at_rest and all(_ends(pod) for pod in pods)


def order(run: Object | None) -> str:
    """Return what goes first among equally urgent runs: those that have had an attempt, then the new ones by age.

    What has been taken away comes before what begins, and what has begun to begin before the next of its kind.
    """
    if run is None or (run.get("status") or {}).get("attempt") or "deletionTimestamp" in run["metadata"]:
        return ""
    return f"{run['metadata']['creationTimestamp']} {run['metadata']['uid']}"


def _ends(pod: Object) -> bool:
    over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return over or "deletionTimestamp" in pod["metadata"]
